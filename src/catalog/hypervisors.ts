import type { Selectable, Updateable } from 'kysely';
import type { Database } from '../database/database.ts';
import type { HypervisorsTable } from '../database/tables.ts';
import { RouseError } from '../errors.ts';
import { takenName } from './devices.ts';
import { jsonColumns, type JsonColumns } from './json-columns.ts';

/** A hypervisor manager or host that was added; `options` is plain JSON of its kind. */
interface Parsed {
  readonly options: unknown;
}
export type HypervisorRow = JsonColumns<Selectable<HypervisorsTable>, Parsed>;

const json = jsonColumns<Parsed>(['options']);

export class Hypervisors {
  readonly #database: Database;

  constructor(database: Database) {
    this.#database = database;
  }

  /** Adds it, or changes the one with that id. Throws `already-exists` when the name is taken. */
  async put(hypervisor: HypervisorRow): Promise<void> {
    const { id, name, kind, uri, addedMs } = hypervisor;
    const rest = { name, kind, uri, addedMs, options: JSON.stringify(hypervisor.options ?? {}) };
    try {
      await this.#database.query
        .insertInto('hypervisors')
        .values({ id, ...rest })
        .onConflict((on) => on.column('id').doUpdateSet(rest))
        .execute();
    } catch (error) {
      throw takenName('hypervisor', name, error);
    }
  }

  /** Changes what is named; the rest stays. Throws `not-found` and `already-exists`. */
  async update(id: string, patch: Partial<Omit<HypervisorRow, 'id'>>): Promise<void> {
    if (Object.keys(patch).length === 0) return;
    try {
      await this.#database.query
        .updateTable('hypervisors')
        .set(json.write(patch) as Updateable<HypervisorsTable>)
        .where('id', '=', id)
        .execute();
    } catch (error) {
      throw takenName('hypervisor', patch.name ?? id, error);
    }
    await this.get(id);
  }

  /** By name. */
  async list(): Promise<readonly HypervisorRow[]> {
    const rows = await this.#database.query
      .selectFrom('hypervisors')
      .selectAll()
      .orderBy('name')
      .execute();
    return rows.map((row) => json.read(row));
  }

  /** By id. Throws `not-found`. */
  async get(id: string): Promise<HypervisorRow> {
    const row = await this.#database.query
      .selectFrom('hypervisors')
      .selectAll()
      .where('id', '=', id)
      .executeTakeFirst();
    if (row === undefined) throw new RouseError('not-found', `no hypervisor is called "${id}"`);
    return json.read(row);
  }

  /** No error when it is gone. Its machines stay known by their savesets. */
  async remove(id: string): Promise<void> {
    await this.#database.transaction(async () => {
      const { query } = this.#database;
      await query.deleteFrom('hypervisors').where('id', '=', id).execute();
      await query
        .updateTable('machines')
        .set({ hypervisorId: null })
        .where('hypervisorId', '=', id)
        .execute();
    });
  }
}
