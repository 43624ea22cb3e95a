import { type Database, nextNumber } from '../database/database.ts';
import { toRouseError } from '../errors.ts';
import type { Clock } from '../lib/clock.ts';
import type { Random } from '../lib/random.ts';
import { workflowLimits } from '../limits.ts';
import type { Json } from './api.ts';
import { backOffMs } from './back-off.ts';
import type { Claim, Claims } from './claims.ts';
import { storedError } from './decide.ts';
import { jsonText } from './journal.ts';

export type TimerListener = (name: string, payload: Json) => Promise<void>;

export interface TimersParts {
  readonly database: Database;
  readonly clock: Clock;
  readonly random: Random;
  readonly claims: Claims;
  report(error: unknown, where: string): void;
  /** There is something to look at sooner than thought. */
  wake(): void;
}

interface DueTimer {
  readonly name: string;
  readonly payload: string;
  readonly version: number;
  readonly failures: number;
}

/**
 * Durable timers. A due timer is claimed, its listeners run, and only then its row goes, unless it
 * was set anew meanwhile. Killed in between, it fires again: at least once, never not at all.
 */
export class Timers {
  readonly #parts: TimersParts;
  readonly #listeners: { readonly prefix: string; readonly listener: TimerListener }[] = [];
  readonly #firing = new Map<string, { claim: Claim; done: Promise<void> }>();

  constructor(parts: TimersParts) {
    this.#parts = parts;
  }

  on(prefix: string, listener: TimerListener): void {
    this.#listeners.push({ prefix, listener });
    this.#parts.wake();
  }

  async set(name: string, atMs: number, payload: Json): Promise<void> {
    const { database, wake } = this.#parts;
    const text = jsonText(payload, `the payload of timer ${name}`);
    await database.transaction(async () => {
      const version = await nextNumber(database, 'timers');
      const row = { atMs, dueMs: atMs, payload: text, version, failures: 0, error: null };
      await database.query
        .insertInto('timers')
        .values({ name, ...row })
        .onConflict((on) => on.column('name').doUpdateSet(row))
        .execute();
      database.afterCommit(wake);
    });
  }

  async clear(name: string): Promise<void> {
    const { database } = this.#parts;
    await database.transaction(async () => {
      await database.query.deleteFrom('timers').where('name', '=', name).execute();
    });
  }

  get claims(): readonly Claim[] {
    return [...this.#firing.values()].map(({ claim }) => claim);
  }

  /** Resolves when those that fire now have ended. */
  async quiet(): Promise<void> {
    await Promise.all([...this.#firing.values()].map(({ done }) => done));
  }

  /** Starts what is due; answers the milliseconds until the next, if there is one. */
  async fireDue(): Promise<number | undefined> {
    const { database, clock } = this.#parts;
    const now = clock.now();
    const due = await database.query
      .selectFrom('timers')
      .select(['name', 'payload', 'version', 'failures'])
      .where('dueMs', '<=', now)
      .orderBy('dueMs')
      .limit(workflowLimits.timersDueMax)
      .execute();
    for (const timer of due) {
      if (this.#firing.size >= workflowLimits.timersMax) break;
      if (this.#firing.has(timer.name) || this.#listenersOf(timer.name).length === 0) continue;
      const claim = await this.#parts.claims.take(`timer:${timer.name}`);
      if (claim !== undefined) this.#start(timer, claim);
    }
    const next = await database.query
      .selectFrom('timers')
      .select((eb) => eb.fn.min('dueMs').as('dueMs'))
      .where('dueMs', '>', now)
      .executeTakeFirst();
    // min() of no rows is null, whatever the types say.
    return typeof next?.dueMs === 'number' ? next.dueMs - now : undefined;
  }

  #listenersOf(name: string): readonly TimerListener[] {
    return this.#listeners.flatMap(({ prefix, listener }) =>
      name.startsWith(prefix) ? [listener] : [],
    );
  }

  #start(timer: DueTimer, claim: Claim): void {
    const done = this.#fire(timer, claim)
      .catch((error: unknown) => this.#parts.report(error, `timer ${timer.name}`))
      .finally(() => {
        this.#firing.delete(timer.name);
        this.#parts.wake();
      });
    this.#firing.set(timer.name, { claim, done });
  }

  async #fire(timer: DueTimer, claim: Claim): Promise<void> {
    try {
      for (const listener of this.#listenersOf(timer.name)) {
        await listener(timer.name, JSON.parse(timer.payload) as Json);
      }
    } catch (error) {
      this.#parts.report(error, `timer ${timer.name}`);
      await this.#tryLater(timer, claim, error);
      return;
    }
    const { database, claims } = this.#parts;
    await database.transaction(async () => {
      await claims.hold(claim);
      await database.query
        .deleteFrom('timers')
        .where('name', '=', timer.name)
        .where('version', '=', timer.version)
        .execute();
      await claims.release(claim);
    });
  }

  async #tryLater(timer: DueTimer, claim: Claim, error: unknown): Promise<void> {
    const { database, claims, clock, random } = this.#parts;
    const failures = timer.failures + 1;
    const dueMs = clock.now() + backOffMs(failures, workflowLimits.undoRetryMs, random);
    const stored = storedError(toRouseError(error, `timer ${timer.name}`));
    await database.transaction(async () => {
      await claims.hold(claim);
      await database.query
        .updateTable('timers')
        .set({ failures, dueMs, error: stored })
        .where('name', '=', timer.name)
        .where('version', '=', timer.version)
        .execute();
      await claims.release(claim);
    });
  }
}
