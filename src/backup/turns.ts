import { RouseError } from '../errors.ts';
import type { BackupPlace } from '../hypervisors/port.ts';
import { turnLimits } from './limits.ts';

/**
 * Who may read now: so many backups at once on each host and each datastore, in the order in which
 * they came. One that waits for a full place does not keep others from free ones; but no later one
 * takes a place that an earlier one waits for, so nobody waits for ever.
 *
 * Turns live in memory. After a restart, backups that had begun have their snapshots already: they
 * come in at once, whatever the limits, and the rest queues behind them.
 */
export class BackupTurns {
  readonly #holding = new Map<string, readonly BackupPlace[]>();
  readonly #waiting: Waiter[] = [];

  /** Resolves when it is this backup's turn; again at once while it has one. */
  async enter(
    backupId: string,
    places: readonly BackupPlace[],
    how: {
      readonly hasBegun: boolean;
      readonly signal: AbortSignal;
      waits(because: string): void;
    },
  ): Promise<void> {
    if (this.#holding.has(backupId)) return;
    if (how.hasBegun || places.length === 0) {
      this.#holding.set(backupId, places);
      return;
    }
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    const waiter: Waiter = { backupId, places, resolve };
    const onAbort = () => {
      this.#forget(waiter);
      const { reason } = how.signal as { readonly reason: unknown };
      reject(new RouseError('cancelled', `the backup no longer waits: ${String(reason)}`));
      // What it had wanted is free for those behind it.
      this.#admit();
    };
    this.#waiting.push(waiter);
    how.signal.addEventListener('abort', onAbort, { once: true });
    this.#admit();
    if (!this.#holding.has(backupId)) how.waits(this.#because(waiter));
    try {
      if (how.signal.aborted) onAbort();
      await promise;
    } finally {
      how.signal.removeEventListener('abort', onAbort);
    }
  }

  /** No error when it has none. */
  leave(backupId: string): void {
    if (this.#holding.delete(backupId)) this.#admit();
  }

  #admit(): void {
    const wanted = new Set<string>();
    for (const waiter of [...this.#waiting]) {
      const isFree = waiter.places.every((place) => !wanted.has(place.id) && this.#hasRoom(place));
      if (isFree) {
        this.#forget(waiter);
        this.#holding.set(waiter.backupId, waiter.places);
        waiter.resolve();
      } else {
        for (const { id } of waiter.places) wanted.add(id);
      }
    }
  }

  #forget(waiter: Waiter): void {
    const at = this.#waiting.indexOf(waiter);
    if (at >= 0) this.#waiting.splice(at, 1);
  }

  #hasRoom(place: BackupPlace): boolean {
    return this.#readersOf(place) < limitOf(place);
  }

  #readersOf({ id }: BackupPlace): number {
    const all = [...this.#holding.values()];
    return all.filter((places) => places.some((place) => place.id === id)).length;
  }

  #because(waiter: Waiter): string {
    const full = waiter.places.find((place) => !this.#hasRoom(place));
    if (full === undefined) return 'others wait for the same places';
    return `${full.kind} ${full.name}: ${this.#readersOf(full)} backups read there`;
  }
}

interface Waiter {
  readonly backupId: string;
  readonly places: readonly BackupPlace[];
  resolve(): void;
}

function limitOf({ kind }: BackupPlace): number {
  return kind === 'host' ? turnLimits.perHostMax : turnLimits.perDatastoreMax;
}
