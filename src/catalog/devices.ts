import type { Selectable } from 'kysely';
import type { Database } from '../database/database.ts';
import type { DevicesTable } from '../database/tables.ts';
import { RouseError } from '../errors.ts';

/** How a vault is reached. */
export type Device = Readonly<Selectable<DevicesTable>>;

export class Devices {
  readonly #database: Database;

  constructor(database: Database) {
    this.#database = database;
  }

  /** Adds it, or changes the one with that id. Throws `already-exists` when the name is taken. */
  async put(device: Device): Promise<void> {
    const { name, kind, address, vaultId, createdMs } = device;
    const rest = { name, kind, address, vaultId, createdMs };
    try {
      await this.#database.query
        .insertInto('devices')
        .values(device)
        .onConflict((on) => on.column('id').doUpdateSet(rest))
        .execute();
    } catch (error) {
      throw takenName('device', name, error);
    }
  }

  /** By name. */
  async list(): Promise<readonly Device[]> {
    return this.#database.query.selectFrom('devices').selectAll().orderBy('name').execute();
  }

  async find(id: string): Promise<Device | undefined> {
    return this.#database.query
      .selectFrom('devices')
      .selectAll()
      .where('id', '=', id)
      .executeTakeFirst();
  }

  /** No error when it is gone. */
  async remove(id: string): Promise<void> {
    await this.#database.query.deleteFrom('devices').where('id', '=', id).execute();
  }
}

/** The database's complaint about a unique name, in a person's words; other errors as they are. */
export function takenName(what: string, name: string, error: unknown): unknown {
  if (!(error instanceof RouseError) || error.code !== 'already-exists') return error;
  return new RouseError('already-exists', `another ${what} is called "${name}"`, { cause: error });
}
