import { isRouseError, type RouseError } from '../../errors.ts';
import type { ReconcileFinding } from '../reconcile-schema.ts';

/** What a finding is about. */
export type Thing = Pick<ReconcileFinding, 'kind' | 'name' | 'where' | 'recovery'>;

/**
 * The hand that mends, or only points: in a dry run it says what it would do. Whatever it does not
 * do, it says why. A failure ends nothing else.
 */
export class Hand {
  readonly isDry: boolean;
  /** What cannot be known to be unused may go as well. */
  readonly isForced: boolean;
  readonly signal: AbortSignal;
  readonly findings: ReconcileFinding[] = [];

  constructor(request: { dryRun: boolean; force: boolean }, signal: AbortSignal) {
    this.isDry = request.dryRun;
    this.isForced = request.force;
    this.signal = signal;
  }

  leave(thing: Thing, problem: string, note: string): void {
    this.findings.push({ ...thing, problem, outcome: 'left', note });
  }

  /** True when it is as it should be now, or would be. */
  async mend(
    thing: Thing,
    problem: string,
    what: string,
    work: () => Promise<void>,
  ): Promise<boolean> {
    if (this.isDry) {
      this.findings.push({ ...thing, problem, outcome: 'would mend', note: what });
      return true;
    }
    try {
      this.signal.throwIfAborted();
      await work();
      this.findings.push({ ...thing, problem, outcome: 'mended', note: what });
      return true;
    } catch (error) {
      if (!isRouseError(error)) throw error;
      const outcome = isRefusal(error) ? 'left' : 'failed';
      const note = `${error.message}. ${error.advice}`;
      this.findings.push({ ...thing, problem, outcome, note });
      return false;
    }
  }
}

/** Somebody uses it, or it has changed since it was looked at: no fault, and none of ours to force. */
function isRefusal({ code }: RouseError): boolean {
  return code === 'busy' || code === 'wrong-state';
}
