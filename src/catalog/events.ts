import type { Selectable } from 'kysely';
import { type Database, nextNumber } from '../database/database.ts';
import type { EventsTable } from '../database/tables.ts';
import type { Clock } from '../lib/clock.ts';
import { storeLimits } from '../limits.ts';

export type EventRow = Readonly<Selectable<EventsTable>>;

export interface NewEvent {
  readonly level: EventRow['level'];
  /** Such as `recovery.available`. */
  readonly kind: string;
  readonly subject: { readonly kind: string; readonly id: string; readonly name: string } | null;
  readonly message: string;
}

export interface EventsPage {
  readonly subjectId?: string;
  /** Numbers above this one. */
  readonly after?: number;
  /** Numbers below this one. */
  readonly before?: number;
  readonly limit: number;
}

/** The log of what happened: only ever added to, in commit order; the oldest are dropped. */
export class Events {
  readonly #database: Database;
  readonly #clock: Clock;
  readonly #listeners = new Set<(event: EventRow) => void>();

  constructor(database: Database, clock: Clock) {
    this.#database = database;
    this.#clock = clock;
  }

  async append({ level, kind, subject, message }: NewEvent): Promise<EventRow> {
    return this.#database.transaction(async () => {
      const event: EventRow = {
        seq: await nextNumber(this.#database, 'events'),
        timeMs: this.#clock.now(),
        level,
        kind,
        subjectKind: subject?.kind ?? null,
        subjectId: subject?.id ?? null,
        subjectName: subject?.name ?? null,
        message,
      };
      await this.#database.query.insertInto('events').values(event).execute();
      if (event.seq % storeLimits.eventsSweepEvery === 0) await this.#dropOld(event.seq);
      this.#database.afterCommit(() => {
        for (const listener of this.#listeners) listener(event);
      });
      return event;
    });
  }

  async #dropOld(seq: number): Promise<void> {
    await this.#database.query
      .deleteFrom('events')
      .where('seq', '<=', seq - storeLimits.eventsKeptMax)
      .execute();
  }

  /**
   * Oldest first: the first `limit` after `after`, so that who follows the log misses none; without
   * it, the last `limit` (before `before`).
   */
  async page({ subjectId, after, before, limit }: EventsPage): Promise<readonly EventRow[]> {
    let query = this.#database.query.selectFrom('events').selectAll();
    if (subjectId !== undefined) query = query.where('subjectId', '=', subjectId);
    if (before !== undefined) query = query.where('seq', '<', before);
    if (after !== undefined) query = query.where('seq', '>', after);
    const forwards = after !== undefined;
    const rows = await query
      .orderBy('seq', forwards ? 'asc' : 'desc')
      .limit(limit)
      .execute();
    return forwards ? rows : rows.toReversed();
  }

  /** Every event from now on, once it is durable. */
  onAppend(listener: (event: EventRow) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }
}
