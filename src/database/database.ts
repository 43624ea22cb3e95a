import { AsyncLocalStorage } from 'node:async_hooks';
import { CamelCasePlugin, Kysely, type Transaction } from 'kysely';
import { RouseError } from '../errors.ts';
import type { Clock } from '../lib/clock.ts';
import { migrate } from './migrations.ts';
import { sqliteDialect } from './sqlite.ts';
import type { Tables } from './tables.ts';

/**
 * The server's own memory: runs, timers and the catalog, in SQL.
 *
 * A *transaction* is ambient: what is asked through `query` inside `transaction(work)` belongs to
 * it, also in functions that `work` calls, so that stores and engine need no parameter to commit
 * together. An inner `transaction` joins the outer one; when it fails, all of it fails.
 *
 * Invariants: a resolved `transaction` is durable; effects given to `afterCommit` run after that,
 * in commit order, or never. Concurrency: one connection; transactions run one after the other, so
 * nothing that waits for the outside belongs into one.
 */
export interface Database {
  readonly query: Kysely<Tables>;
  transaction<T>(work: () => Promise<T>): Promise<T>;
  /** Runs once the surrounding transaction is durable; at once when there is none. */
  afterCommit(effect: () => void): void;
  close(): Promise<void>;
}

export interface DatabaseOptions {
  /** A file, created when missing; `:memory:` for tests. */
  readonly path: string;
  readonly clock: Clock;
}

/** Opens and migrates. Throws `newer-format` when a later version of Rouse wrote the file. */
export async function openDatabase(options: DatabaseOptions): Promise<Database> {
  const database = new SqlDatabase(
    new Kysely<Tables>({
      dialect: sqliteDialect(options.path, options.clock),
      plugins: [new CamelCasePlugin()],
    }),
  );
  try {
    await migrate(database, options.path, options.clock);
  } catch (error) {
    await database.close();
    throw error;
  }
  return database;
}

interface Ambient {
  readonly transaction: Transaction<Tables>;
  readonly effects: (() => void)[];
  open: boolean;
  failure: unknown;
}

class SqlDatabase implements Database {
  readonly #kysely: Kysely<Tables>;
  readonly #ambient = new AsyncLocalStorage<Ambient | undefined>();

  constructor(kysely: Kysely<Tables>) {
    this.#kysely = kysely;
  }

  get query(): Kysely<Tables> {
    return this.#current()?.transaction ?? this.#kysely;
  }

  async transaction<T>(work: () => Promise<T>): Promise<T> {
    const outer = this.#current();
    if (outer !== undefined) return joined(outer, work);
    const effects: (() => void)[] = [];
    const value = await this.#kysely.transaction().execute(async (transaction) => {
      const ambient: Ambient = { transaction, effects, open: true, failure: undefined };
      try {
        const result = await this.#ambient.run(ambient, work);
        if (ambient.failure !== undefined) throw ambient.failure;
        return result;
      } finally {
        ambient.open = false;
      }
    });
    for (const effect of effects) this.#ambient.run(undefined, effect);
    return value;
  }

  afterCommit(effect: () => void): void {
    const ambient = this.#current();
    if (ambient === undefined) this.#ambient.run(undefined, effect);
    else ambient.effects.push(effect);
  }

  async close(): Promise<void> {
    await this.#kysely.destroy();
  }

  /** Work that outlives its transaction must not write into the next one's. */
  #current(): Ambient | undefined {
    const ambient = this.#ambient.getStore();
    return ambient?.open === true ? ambient : undefined;
  }
}

async function joined<T>(outer: Ambient, work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    outer.failure ??= error ?? new RouseError('internal', 'an inner transaction failed');
    throw error;
  }
}

/** The next value of a counter that only grows; in commit order. */
export async function nextNumber(database: Database, name: string): Promise<number> {
  const { value } = await database.query
    .insertInto('counters')
    .values({ name, value: 1 })
    .onConflict((on) =>
      on.column('name').doUpdateSet((eb) => ({ value: eb('counters.value', '+', 1) })),
    )
    .returning('value')
    .executeTakeFirstOrThrow();
  return value;
}
