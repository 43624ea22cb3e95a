import type { Insertable, Selectable, Updateable } from 'kysely';
import type { Database } from '../database/database.ts';
import type { RecoveriesTable, RecoveryState } from '../database/tables.ts';
import { RouseError } from '../errors.ts';
import type { Failure } from '../lib/fields.ts';
import { storeLimits } from '../limits.ts';
import { jsonColumns, type JsonColumns } from './json-columns.ts';

/** One recovery, from request to clean-up. `options`: the request as decided, plain JSON. */
interface Parsed {
  readonly clients: readonly string[];
  readonly options: unknown;
  readonly warnings: readonly string[];
  readonly error: Failure | null;
}
export type RecoveryRow = JsonColumns<Selectable<RecoveriesTable>, Parsed>;
export type RecoveryPatch = Partial<Omit<RecoveryRow, 'id'>>;
/** What a new recovery must say; the rest begins empty. */
export type NewRecovery = RecoveryPatch &
  Pick<
    RecoveryRow,
    'id' | 'machineId' | 'savesetId' | 'mode' | 'name' | 'state' | 'createdMs' | 'options'
  >;

export interface RecoveriesFilter {
  /** Active: neither done, failed nor cancelled. */
  readonly active?: boolean;
  readonly states?: readonly RecoveryState[];
  readonly machineId?: string;
}

export const endedRecoveryStates: readonly RecoveryState[] = ['done', 'failed', 'cancelled'];

const json = jsonColumns<Parsed>(['clients', 'options', 'warnings', 'error']);

export class Recoveries {
  readonly #database: Database;

  constructor(database: Database) {
    this.#database = database;
  }

  /** Throws `already-exists` when the id is taken. */
  async insert(recovery: NewRecovery): Promise<RecoveryRow> {
    const row = json.write({ clients: [], warnings: [], ...recovery });
    await this.#database.query
      .insertInto('recoveries')
      .values(row as Insertable<RecoveriesTable>)
      .execute();
    return this.get(recovery.id);
  }

  /** By id. Throws `not-found`. */
  async get(id: string): Promise<RecoveryRow> {
    const row = await this.find(id);
    if (row === undefined) throw new RouseError('not-found', `no recovery is called "${id}"`);
    return row;
  }

  async find(id: string): Promise<RecoveryRow | undefined> {
    const row = await this.#database.query
      .selectFrom('recoveries')
      .selectAll()
      .where('id', '=', id)
      .executeTakeFirst();
    return row === undefined ? undefined : json.read(row);
  }

  /** Newest first. */
  async list(filter: RecoveriesFilter): Promise<readonly RecoveryRow[]> {
    let query = this.#database.query.selectFrom('recoveries').selectAll();
    const { active, states, machineId } = filter;
    if (states?.length === 0) return [];
    if (active === true) query = query.where('state', 'not in', [...endedRecoveryStates]);
    if (active === false) query = query.where('state', 'in', [...endedRecoveryStates]);
    if (states !== undefined) query = query.where('state', 'in', [...states]);
    if (machineId !== undefined) query = query.where('machineId', '=', machineId);
    const rows = await query
      .orderBy('createdMs', 'desc')
      .orderBy('id')
      .limit(storeLimits.rowsMax)
      .execute();
    return rows.map((row) => json.read(row));
  }

  /** Changes what is named; the rest stays. Throws `not-found`. */
  async update(id: string, patch: RecoveryPatch): Promise<void> {
    await this.#change(id, patch);
  }

  /** Changes it only while it is in one of these states; answers whether it was. */
  async updateWhile(
    id: string,
    states: readonly RecoveryState[],
    patch: RecoveryPatch,
  ): Promise<boolean> {
    return this.#change(id, patch, states);
  }

  async #change(
    id: string,
    patch: RecoveryPatch,
    states?: readonly RecoveryState[],
  ): Promise<boolean> {
    if (Object.keys(patch).length === 0) return (await this.get(id)).id === id;
    let query = this.#database.query
      .updateTable('recoveries')
      .set(json.write(patch) as Updateable<RecoveriesTable>)
      .where('id', '=', id);
    if (states !== undefined) query = query.where('state', 'in', [...states]);
    const { numUpdatedRows } = await query.executeTakeFirst();
    if (Number(numUpdatedRows) > 0) return true;
    await this.get(id);
    return false;
  }
}
