import type { PastMount, Placement, ProxyFacts } from '../placement/port.ts';
import { rankCandidates } from '../placement/scoring.ts';

export interface MemoryPlacement extends Placement {
  /** What was remembered of mounts, oldest first. */
  readonly remembered: Omit<PastMount, 'okMs' | 'failedMs'>[];
}

type Told = readonly (Partial<ProxyFacts> & { readonly name: string })[];

/** Placement over proxies that are as a test says: connected, idle and near, unless told otherwise. */
export function memoryPlacement(proxies: () => Told | Promise<Told>): MemoryPlacement {
  const remembered: MemoryPlacement['remembered'] = [];
  return {
    remembered,
    rank: async (question) =>
      rankCandidates({
        ...question,
        proxies: (await proxies()).map((proxy) => ({
          state: 'connected',
          problem: null,
          addresses: ['127.0.0.1'],
          networks: [],
          devices: [question.device.id],
          labels: {},
          onlyFor: [],
          neverFor: [],
          loadShare: 0,
          freeShare: 1,
          isWarm: false,
          ...proxy,
        })),
        pastMounts: [],
        reach: [],
      }),
    mounted: async (past) => void remembered.push(past),
  };
}
