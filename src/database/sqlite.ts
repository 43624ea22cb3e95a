import { DatabaseSync, type SQLInputValue, type StatementSync } from 'node:sqlite';
import {
  type CompiledQuery,
  type DatabaseConnection,
  type Dialect,
  type Driver,
  type QueryResult,
  SqliteAdapter,
  SqliteIntrospector,
  SqliteQueryCompiler,
} from 'kysely';
import { RouseError } from '../errors.ts';
import type { Clock } from '../lib/clock.ts';
import { databaseLimits } from '../limits.ts';

/**
 * Kysely on node:sqlite. One connection, used by one query or one transaction at a time, first
 * come first served. WAL with synchronous=FULL: a commit has been synced when it returns.
 */
export function sqliteDialect(path: string, clock: Clock): Dialect {
  return {
    createDriver: () => new NodeSqliteDriver(path, clock),
    createQueryCompiler: () => new SqliteQueryCompiler(),
    createAdapter: () => new OwnQueueAdapter(),
    createIntrospector: (db) => new SqliteIntrospector(db),
  };
}

/** Kysely would queue for the one connection itself, without a bound: `Turns` has one. */
class OwnQueueAdapter extends SqliteAdapter {
  override get supportsMultipleConnections(): boolean {
    return true;
  }
}

class NodeSqliteDriver implements Driver {
  readonly #path: string;
  readonly #turns: Turns;
  #connection: NodeSqliteConnection | undefined;

  constructor(path: string, clock: Clock) {
    this.#path = path;
    this.#turns = new Turns(path, clock);
  }

  async init(): Promise<void> {
    this.#connection = new NodeSqliteConnection(this.#path);
  }

  async acquireConnection(): Promise<DatabaseConnection> {
    await this.#turns.take();
    if (this.#connection === undefined) {
      this.#turns.give();
      throw new RouseError('internal', `${this.#path}: the database is closed`);
    }
    return this.#connection;
  }

  async releaseConnection(): Promise<void> {
    this.#turns.give();
  }

  /** IMMEDIATE takes the write lock now, so that no statement finds it taken half-way. */
  async beginTransaction(): Promise<void> {
    this.#connection?.exec('begin immediate');
  }

  async commitTransaction(): Promise<void> {
    this.#connection?.exec('commit');
  }

  /** A full disk makes SQLite roll back by itself; there is nothing left to do then. */
  async rollbackTransaction(): Promise<void> {
    if (this.#connection?.inTransaction === true) this.#connection.exec('rollback');
  }

  async destroy(): Promise<void> {
    await this.#turns.take();
    this.#connection?.close();
    this.#connection = undefined;
    this.#turns.give();
  }
}

class NodeSqliteConnection implements DatabaseConnection {
  readonly #path: string;
  readonly #database: DatabaseSync;
  readonly #statements = new Map<string, StatementSync>();

  constructor(path: string) {
    this.#path = path;
    this.#database = guard(path, () => {
      const database = new DatabaseSync(path, { timeout: databaseLimits.busyTimeoutMs });
      database.exec('pragma journal_mode = wal');
      database.exec('pragma synchronous = full');
      database.exec('pragma foreign_keys = on');
      return database;
    });
  }

  get inTransaction(): boolean {
    return this.#database.isTransaction;
  }

  exec(sql: string): void {
    guard(this.#path, () => this.#database.exec(sql));
  }

  async executeQuery<R>(query: CompiledQuery): Promise<QueryResult<R>> {
    return guard(this.#path, () => {
      const statement = this.#prepare(query.sql);
      const parameters = query.parameters as SQLInputValue[];
      if (statement.columns().length > 0) return { rows: statement.all(...parameters) as R[] };
      const { changes, lastInsertRowid } = statement.run(...parameters);
      return { rows: [], numAffectedRows: BigInt(changes), insertId: BigInt(lastInsertRowid) };
    });
  }

  // oxlint-disable-next-line require-yield -- the interface asks for it; pages are small here
  async *streamQuery<R>(): AsyncIterableIterator<QueryResult<R>> {
    throw new RouseError('internal', 'streaming queries are not offered: read pages');
  }

  close(): void {
    this.#statements.clear();
    this.#database.close();
  }

  #prepare(sql: string): StatementSync {
    let statement = this.#statements.get(sql);
    if (statement !== undefined) return statement;
    if (this.#statements.size >= databaseLimits.statementsMax) this.#statements.clear();
    statement = this.#database.prepare(sql);
    this.#statements.set(sql, statement);
    return statement;
  }
}

/** The queue for the one connection. */
class Turns {
  readonly #path: string;
  readonly #clock: Clock;
  readonly #waiting: (() => void)[] = [];
  #taken = false;

  constructor(path: string, clock: Clock) {
    this.#path = path;
    this.#clock = clock;
  }

  async take(): Promise<void> {
    if (!this.#taken) {
      this.#taken = true;
      return;
    }
    const turn = Promise.withResolvers<void>();
    this.#waiting.push(turn.resolve);
    const enough = new AbortController();
    const late = this.#clock.sleep(databaseLimits.queueWaitMs, enough.signal).then(
      () => this.#giveUp(turn),
      () => undefined,
    );
    try {
      await turn.promise;
    } finally {
      enough.abort();
      void late;
    }
  }

  give(): void {
    const next = this.#waiting.shift();
    if (next === undefined) this.#taken = false;
    else next();
  }

  #giveUp(turn: PromiseWithResolvers<void>): void {
    const at = this.#waiting.indexOf(turn.resolve);
    if (at < 0) return;
    this.#waiting.splice(at, 1);
    const seconds = databaseLimits.queueWaitMs / 1000;
    turn.reject(
      new RouseError('time-out', `${this.#path}: another transaction stays open for ${seconds} s`),
    );
  }
}

function guard<T>(path: string, work: () => T): T {
  try {
    return work();
  } catch (error) {
    throw toDatabaseError(error, path);
  }
}

/** https://sqlite.org/rescode.html, primary codes (the low byte). */
const SQLITE_PERM = 3;
const SQLITE_BUSY = 5;
const SQLITE_READONLY = 8;
const SQLITE_IOERR = 10;
const SQLITE_CORRUPT = 11;
const SQLITE_FULL = 13;
const SQLITE_CANTOPEN = 14;
const SQLITE_CONSTRAINT = 19;
const SQLITE_NOTADB = 26;
/** Extended codes: SQLITE_CONSTRAINT_PRIMARYKEY and SQLITE_CONSTRAINT_UNIQUE. */
const duplicates: ReadonlySet<number> = new Set([1555, 2067]);

function toDatabaseError(error: unknown, path: string): unknown {
  if (!(error instanceof Error) || !('errcode' in error)) return error;
  const code = Number(error.errcode);
  const where = `${path}: ${error.message}`;
  const options = { cause: error };
  switch (code & 0xff) {
    case SQLITE_FULL:
      return new RouseError('disk-full', where, options);
    case SQLITE_BUSY:
      return new RouseError('busy', where, options);
    case SQLITE_PERM:
    case SQLITE_READONLY:
      return new RouseError('forbidden', where, options);
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
      return new RouseError('corrupt-data', where, {
        ...options,
        advice: 'Put a copy of the database back, or move it away: rescan rebuilds the catalog.',
      });
    case SQLITE_IOERR:
    case SQLITE_CANTOPEN:
      return new RouseError('io-error', where, options);
    case SQLITE_CONSTRAINT:
      return new RouseError(duplicates.has(code) ? 'already-exists' : 'internal', where, options);
    default:
      return new RouseError('internal', where, options);
  }
}
