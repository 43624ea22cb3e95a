import type { WriteResult } from '../nfs/file-system.ts';

/** All writes of one turn of the event loop, answered together. */
export interface Tick {
  readonly unstable: PromiseWithResolvers<WriteResult>;
  readonly stable: PromiseWithResolvers<WriteResult>;
  hasUnstable: boolean;
  hasStable: boolean;
}

export function newTick(): Tick {
  return {
    unstable: Promise.withResolvers<WriteResult>(),
    stable: Promise.withResolvers<WriteResult>(),
    hasUnstable: false,
    hasStable: false,
  };
}
