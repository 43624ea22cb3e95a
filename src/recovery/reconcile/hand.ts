import { isRouseError, type RouseError } from '../../errors.ts';
import type { ReconcileFinding } from '../reconcile-schema.ts';

/** What a finding is about. */
export type Thing = Pick<ReconcileFinding, 'kind' | 'name' | 'where' | 'recovery'>;

type Work = () => Promise<void>;
type Mend = Work | { readonly look: Work; readonly work: Work };

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

  /** True when it is as it should be now, or would be. `look` refuses as `work` does and changes nothing. */
  async mend(thing: Thing, problem: string, what: string, mend: Mend): Promise<boolean> {
    const { look, work } = typeof mend === 'function' ? { look: undefined, work: mend } : mend;
    const outcome = this.isDry ? 'would mend' : 'mended';
    try {
      this.signal.throwIfAborted();
      await (this.isDry ? look?.() : work());
      this.findings.push({ ...thing, problem, outcome, note: what });
      return true;
    } catch (error) {
      if (!isRouseError(error)) throw error;
      const refused = isRefusal(error) ? 'left' : 'failed';
      const note = `${error.message}. ${error.advice}`;
      this.findings.push({ ...thing, problem, outcome: refused, note });
      return false;
    }
  }
}

/** Somebody uses it, or it has changed since it was looked at: no fault, and none of ours to force. */
function isRefusal({ code }: RouseError): boolean {
  return code === 'busy' || code === 'wrong-state';
}
