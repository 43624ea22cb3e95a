import type { Clock } from '../lib/clock.ts';
import { nfsLimits } from '../limits.ts';

/**
 * Waits for the next call awake, where it is worth it. A client that sends a call as soon as it has
 * its reply (a guest that boots, a copy with one request in flight) is back within some tens of
 * microseconds; a process that went to sleep meanwhile takes as long to be woken, and in a virtual
 * machine longer. So the event loop is kept turning for a moment after replies have left, while
 * recent calls came that soon. Looks in vain are paid from a credit that time fills slowly and looks
 * that were worth it fill faster: what is lost is a small part of the time, whatever the client
 * does, and one that pauses now and then does not lose what it gains.
 */
export class NextCall {
  readonly #clock: Clock;
  /** Runs something in the next turn of the event loop, which does not sleep before it. */
  readonly #soon: (run: () => void) => void;
  #answeredMs = -Infinity;
  /** Calls in a row that came soon. */
  #soonInRow = 0;
  /** Milliseconds that may be looked in vain, as of `#creditAtMs`. */
  #creditMs: number = nfsLimits.lookCreditMsMax;
  #creditAtMs = 0;
  #isLooking = false;
  #isScheduled = false;
  #looks = 0;

  constructor(clock: Clock, soon: (run: () => void) => void = nextTurn) {
    this.#clock = clock;
    this.#soon = soon;
  }

  /** Whether the event loop is kept from sleeping. */
  get isLooking(): boolean {
    return this.#isLooking;
  }

  /** Calls came in, on any connection. */
  came(nowMs: number): void {
    if (this.#isLooking) this.#creditMs += nfsLimits.lookGainMs;
    this.#isLooking = false;
    if (nowMs - this.#answeredMs <= nfsLimits.lookMs) this.#soonInRow++;
    else this.#soonInRow = 0;
  }

  /**
   * Replies were handed to the system, on any connection. `isBusy`: other calls wait for the disk.
   * What they wait for wakes this process anyhow, and may be at work on the same core.
   */
  answered(nowMs: number, isBusy = false): void {
    this.#answeredMs = nowMs;
    if (isBusy) return;
    if (this.#soonInRow < nfsLimits.lookAfterCalls || !this.#mayLook(nowMs)) return;
    this.#isLooking = true;
    this.#looks = 0;
    this.#schedule();
  }

  #mayLook(nowMs: number): boolean {
    const earned = (nowMs - this.#creditAtMs) * nfsLimits.lookShare;
    this.#creditMs = Math.min(nfsLimits.lookCreditMsMax, this.#creditMs + earned);
    this.#creditAtMs = nowMs;
    return this.#creditMs >= nfsLimits.lookMs;
  }

  #schedule(): void {
    if (this.#isScheduled) return;
    this.#isScheduled = true;
    this.#soon(this.#look);
  }

  readonly #look = (): void => {
    this.#isScheduled = false;
    if (!this.#isLooking) return;
    const lookedMs = this.#clock.monotonic() - this.#answeredMs;
    if (lookedMs <= nfsLimits.lookMs && ++this.#looks < nfsLimits.looksMax) return this.#schedule();
    this.#isLooking = false;
    this.#soonInRow = 0;
    this.#creditMs -= lookedMs;
  };
}

/** Not unref'd: the event loop goes to sleep over immediates that do not keep it alive. */
function nextTurn(run: () => void): void {
  setImmediate(run);
}
