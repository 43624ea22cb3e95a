import type { Insertable, Selectable, Updateable } from 'kysely';
import type { Database } from '../database/database.ts';
import type { BackupsTable } from '../database/tables.ts';
import { RouseError } from '../errors.ts';
import type { Failure } from '../lib/fields.ts';
import { storeLimits } from '../limits.ts';
import type { IngestCost } from '../vault/api.ts';
import { jsonColumns, type JsonColumns } from './json-columns.ts';

/** One backup that was asked for, whether it made a saveset or not. */
interface Parsed {
  readonly warnings: readonly string[];
  readonly cost: IngestCost | null;
  readonly error: Failure | null;
}
export type BackupRow = JsonColumns<Selectable<BackupsTable>, Parsed>;
export type BackupPatch = Partial<Omit<BackupRow, 'id'>>;
export type NewBackup = BackupPatch &
  Pick<BackupRow, 'id' | 'machineId' | 'machineName' | 'startedMs'>;

export interface BackupsFilter {
  readonly state?: BackupRow['state'];
  readonly machineId?: string;
}

const json = jsonColumns<Parsed>(['warnings', 'cost', 'error']);

export class Backups {
  readonly #database: Database;

  constructor(database: Database) {
    this.#database = database;
  }

  /** Begins as `running`, unless it says otherwise. */
  async insert(backup: NewBackup): Promise<BackupRow> {
    const row = json.write({ state: 'running' as const, warnings: [], ...backup });
    await this.#database.query
      .insertInto('backups')
      .values(row as Insertable<BackupsTable>)
      .execute();
    return this.get(backup.id);
  }

  /** By id. Throws `not-found`. */
  async get(id: string): Promise<BackupRow> {
    const row = await this.find(id);
    if (row === undefined) throw new RouseError('not-found', `no backup is called "${id}"`);
    return row;
  }

  async find(id: string): Promise<BackupRow | undefined> {
    const row = await this.#database.query
      .selectFrom('backups')
      .selectAll()
      .where('id', '=', id)
      .executeTakeFirst();
    return row === undefined ? undefined : json.read(row);
  }

  /** Newest first. */
  async list(filter: BackupsFilter): Promise<readonly BackupRow[]> {
    let query = this.#database.query.selectFrom('backups').selectAll();
    if (filter.state !== undefined) query = query.where('state', '=', filter.state);
    if (filter.machineId !== undefined) query = query.where('machineId', '=', filter.machineId);
    const rows = await query
      .orderBy('startedMs', 'desc')
      .orderBy('id')
      .limit(storeLimits.rowsMax)
      .execute();
    return rows.map((row) => json.read(row));
  }

  /** Changes what is named; the rest stays. Throws `not-found`. */
  async update(id: string, patch: BackupPatch): Promise<void> {
    if (Object.keys(patch).length === 0) return;
    const { numUpdatedRows } = await this.#database.query
      .updateTable('backups')
      .set(json.write(patch) as Updateable<BackupsTable>)
      .where('id', '=', id)
      .executeTakeFirst();
    if (Number(numUpdatedRows) === 0) await this.get(id);
  }
}
