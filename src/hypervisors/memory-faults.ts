import { RouseError } from '../errors.ts';
import type { Clock } from '../lib/clock.ts';
import type { Hypervisor } from './port.ts';

/** Calls that may be told to fail or to be slow. `configure` is pure and never fails by itself. */
export type HypervisorCall = Exclude<keyof Hypervisor, 'kind' | 'configure' | 'close'>;

/**
 * Scripted faults of the memory hypervisor, each used up by one call. `before`: the call changed
 * nothing; `after`: it took effect and its answer was lost, which is what a kill looks like.
 */
export class MemoryFaults {
  /** Every call in order, for tests that count. */
  readonly calls: HypervisorCall[] = [];
  readonly #clock: Clock;
  readonly #waiting: Fault[] = [];

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  failOnce(call: HypervisorCall, error?: Error, when: 'before' | 'after' = 'before'): void {
    const failure = error ?? new RouseError('hypervisor-error', `${call}: told to fail`);
    this.#waiting.push({ call, when, run: () => Promise.reject(failure) });
  }

  delayOnce(call: HypervisorCall, milliseconds: number): void {
    this.#waiting.push({ call, when: 'before', run: () => this.#clock.sleep(milliseconds) });
  }

  /** The next such call waits until the promise settles (a rejection becomes its failure). */
  holdOnce(call: HypervisorCall, until: Promise<void>, when: 'before' | 'after' = 'before'): void {
    this.#waiting.push({ call, when, run: () => until });
  }

  /** Faults that no call has met. */
  get unused(): number {
    return this.#waiting.length;
  }

  async around<T>(call: HypervisorCall, work: () => T): Promise<T> {
    this.calls.push(call);
    await this.#meet(call, 'before');
    const result = work();
    await this.#meet(call, 'after');
    return result;
  }

  async #meet(call: HypervisorCall, when: Fault['when']): Promise<void> {
    const at = this.#waiting.findIndex((fault) => fault.call === call && fault.when === when);
    if (at < 0) return;
    const [fault] = this.#waiting.splice(at, 1);
    await fault?.run();
  }
}

interface Fault {
  readonly call: HypervisorCall;
  readonly when: 'before' | 'after';
  run(): Promise<void>;
}
