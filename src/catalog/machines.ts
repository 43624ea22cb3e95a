import type { Selectable } from 'kysely';
import type { Database } from '../database/database.ts';
import type { MachinesTable } from '../database/tables.ts';
import { RouseError } from '../errors.ts';
import { storeLimits } from '../limits.ts';

/** A machine that was seen on a hypervisor, or that only savesets remember. */
export type MachineRow = Readonly<Selectable<MachinesTable>>;

export class Machines {
  readonly #database: Database;

  constructor(database: Database) {
    this.#database = database;
  }

  /** Adds it, or changes the one with that id. */
  async put(machine: MachineRow): Promise<void> {
    const { id, name, uuid, hypervisorId, lastSeenMs } = machine;
    const rest = { name, uuid, hypervisorId, lastSeenMs };
    await this.#database.query
      .insertInto('machines')
      .values({ id, ...rest })
      .onConflict((on) => on.column('id').doUpdateSet(rest))
      .execute();
  }

  /** Adds it when nobody knows it; what is known of it stays. */
  async remember(id: string, name: string, seenMs: number): Promise<void> {
    await this.#database.query
      .insertInto('machines')
      .values({ id, name, uuid: null, hypervisorId: null, lastSeenMs: seenMs })
      .onConflict((on) => on.column('id').doNothing())
      .execute();
  }

  /** By name. */
  async list(): Promise<readonly MachineRow[]> {
    return this.#database.query
      .selectFrom('machines')
      .selectAll()
      .orderBy('name')
      .orderBy('id')
      .limit(storeLimits.rowsMax)
      .execute();
  }

  async find(id: string): Promise<MachineRow | undefined> {
    return this.#database.query
      .selectFrom('machines')
      .selectAll()
      .where('id', '=', id)
      .executeTakeFirst();
  }

  /** By id. Throws `not-found`. */
  async get(id: string): Promise<MachineRow> {
    const row = await this.find(id);
    if (row === undefined) throw new RouseError('not-found', `no machine is called "${id}"`);
    return row;
  }

  /** The machine with that firmware UUID; several hypervisors may have one each. */
  async byUuid(uuid: string): Promise<readonly MachineRow[]> {
    return this.#database.query
      .selectFrom('machines')
      .selectAll()
      .where('uuid', '=', uuid)
      .orderBy('id')
      .execute();
  }
}
