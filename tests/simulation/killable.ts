import { AsyncLocalStorage } from 'node:async_hooks';
import type { Database } from '#src/database/database.ts';
import type { Clock } from '#src/lib/clock.ts';

/**
 * Dies at the n-th point: from then on nothing that passes through it ever returns, which is what
 * kill -9 looks like from the inside.
 */
export class Killer {
  killed = false;
  points = 0;
  /** The point to die at; 0: never. */
  readonly #at: number;
  /** Called at every point that is survived. */
  onPoint: (point: number) => void = () => undefined;

  constructor(at = 0) {
    this.#at = at;
  }

  async point(): Promise<void> {
    if (this.killed) return never();
    this.points += 1;
    if (this.points === this.#at) {
      this.killed = true;
      return never();
    }
    this.onPoint(this.points);
  }

  /** The same where a transaction has to be rolled back first. */
  pointInside(): void {
    if (this.killed) throw new Killed();
    this.points += 1;
    if (this.points === this.#at) {
      this.killed = true;
      throw new Killed();
    }
    this.onPoint(this.points);
  }
}

class Killed extends Error {}

export function never(): Promise<never> {
  return new Promise(() => undefined);
}

/** A database that can die before and after every commit. */
export function killableDatabase(inner: Database, killer: Killer): Database {
  const inside = new AsyncLocalStorage<boolean>();
  return {
    get query() {
      if (killer.killed) throw new Killed();
      return inner.query;
    },
    async transaction<T>(work: () => Promise<T>): Promise<T> {
      if (inside.getStore() === true) return inner.transaction(work);
      if (killer.killed) return never();
      let value: T;
      try {
        value = await inside.run(true, () =>
          inner.transaction(async () => {
            const result = await work();
            killer.pointInside();
            return result;
          }),
        );
      } catch (error) {
        if (killer.killed) return never();
        throw error;
      }
      await killer.point();
      return value;
    },
    afterCommit: (effect) =>
      inner.afterCommit(() => {
        inside.run(false, effect);
      }),
    close: () => inner.close(),
  };
}

/** Nobody wakes up in a dead process. */
export function killableClock(inner: Clock, killer: Killer): Clock {
  return {
    now: () => inner.now(),
    monotonic: () => inner.monotonic(),
    sleep: async (milliseconds, signal) => {
      if (killer.killed) return never();
      await inner.sleep(milliseconds, signal);
      if (killer.killed) return never();
    },
  };
}
