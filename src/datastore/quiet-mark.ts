import type { Clock } from '../lib/clock.ts';
import type { LayerState } from './layer-state.ts';

/**
 * Records a layer as clean a while after its last unsynced write was synced, so that a power cut
 * from then on leaves the verifier as it is. Not at once: the next unsynced write would have to
 * wait until it is recorded as dirty again.
 */
export class QuietMark {
  readonly #state: LayerState;
  readonly #clock: Clock;
  readonly #quietMs: number;
  readonly #synced: () => boolean;
  readonly #ending = new AbortController();
  #timer: Promise<void> | undefined;

  constructor(state: LayerState, clock: Clock, quietMs: number, synced: () => boolean) {
    this.#state = state;
    this.#clock = clock;
    this.#quietMs = quietMs;
    this.#synced = synced;
  }

  /** Call whenever something was synced, and whenever what waited was given up. */
  consider(): void {
    if (!this.#state.dirty || this.#timer !== undefined) return;
    if (this.#ending.signal.aborted || !this.#synced()) return;
    this.#timer = this.#clock
      .sleep(this.#quietMs, this.#ending.signal)
      .then(() => this.#state.markClean(this.#synced))
      // Not recorded as clean: the verifier may then change once more than needed.
      .catch(() => undefined)
      .finally(() => {
        this.#timer = undefined;
        this.consider();
      });
  }

  async stop(): Promise<void> {
    this.#ending.abort(new Error('the write layer is closed'));
    await this.#timer;
  }
}
