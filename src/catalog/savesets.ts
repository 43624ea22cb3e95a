import type { Database } from '../database/database.ts';
import { RouseError } from '../errors.ts';
import { formatDuration, joinOr } from '../lib/text.ts';
import { formatTime } from '../lib/times.ts';
import { storeLimits } from '../limits.ts';
import type { Saveset } from '../vault/api.ts';
import { Machines } from './machines.ts';

/**
 * Copies of the vault's records, to search in. The vault is right: `rebuild` makes the copies equal
 * to it, and a lost catalog comes back that way.
 */
export class Savesets {
  readonly #database: Database;
  readonly #machines: Machines;

  constructor(database: Database) {
    this.#database = database;
    this.#machines = new Machines(database);
  }

  /** Adds it, or changes the one with that id; its machine is remembered as well. */
  async put(saveset: Saveset, deviceId: string | null = null): Promise<void> {
    const { machine, takenAtMs } = saveset;
    const rest = {
      machineId: machine.id,
      machineName: machine.name,
      deviceId,
      mtree: saveset.mtree,
      kind: saveset.kind,
      takenAtMs,
      record: JSON.stringify(saveset),
    };
    await this.#database.transaction(async () => {
      await this.#machines.remember(machine.id, machine.name, takenAtMs);
      await this.#database.query
        .insertInto('savesets')
        .values({ id: saveset.id, ...rest })
        .onConflict((on) => on.column('id').doUpdateSet(rest))
        .execute();
    });
  }

  /** Makes the device's savesets those of this list; answers how many came and went. */
  async rebuild(
    savesets: readonly Saveset[],
    deviceId: string | null = null,
  ): Promise<{ readonly added: number; readonly removed: number }> {
    return this.#database.transaction(async () => {
      const known = new Set(await this.#idsOf(deviceId));
      const wanted = new Set(savesets.map(({ id }) => id));
      const gone = [...known].filter((id) => !wanted.has(id));
      for (const saveset of savesets) await this.put(saveset, deviceId);
      for (const id of gone) await this.remove(id);
      return { added: savesets.filter(({ id }) => !known.has(id)).length, removed: gone.length };
    });
  }

  async #idsOf(deviceId: string | null): Promise<string[]> {
    const query = this.#database.query.selectFrom('savesets').select('id');
    const rows = await query.where('deviceId', deviceId === null ? 'is' : '=', deviceId).execute();
    return rows.map((row) => row.id);
  }

  /** No error when it is gone. */
  async remove(id: string): Promise<void> {
    await this.#database.query.deleteFrom('savesets').where('id', '=', id).execute();
  }

  async find(id: string): Promise<Saveset | undefined> {
    const row = await this.#database.query
      .selectFrom('savesets')
      .select('record')
      .where('id', '=', id)
      .executeTakeFirst();
    return row === undefined ? undefined : (JSON.parse(row.record) as Saveset);
  }

  /** By id. Throws `not-found`. */
  async get(id: string): Promise<Saveset> {
    const saveset = await this.find(id);
    if (saveset === undefined) throw new RouseError('not-found', `no saveset is called "${id}"`);
    return saveset;
  }

  /** The device that holds it; null: not known. */
  async deviceOf(id: string): Promise<string | null> {
    const row = await this.#database.query
      .selectFrom('savesets')
      .select('deviceId')
      .where('id', '=', id)
      .executeTakeFirst();
    return row?.deviceId ?? null;
  }

  /** Newest first. */
  async list(filter: SavesetsFilter = {}): Promise<readonly Saveset[]> {
    let query = this.#database.query.selectFrom('savesets').select('record');
    if (filter.machineId !== undefined) query = query.where('machineId', '=', filter.machineId);
    if (filter.deviceId !== undefined) query = query.where('deviceId', '=', filter.deviceId);
    if (filter.mtree !== undefined) query = query.where('mtree', '=', filter.mtree);
    if (filter.fromMs !== undefined) query = query.where('takenAtMs', '>=', filter.fromMs);
    if (filter.untilMs !== undefined) query = query.where('takenAtMs', '<=', filter.untilMs);
    const rows = await query
      .orderBy('takenAtMs', 'desc')
      .orderBy('id', 'desc')
      .limit(filter.limit ?? storeLimits.rowsMax)
      .execute();
    return rows.map((row) => JSON.parse(row.record) as Saveset);
  }

  /**
   * The newest saveset of the machine, or the last one taken at or before a time. Throws
   * `not-found`, naming the machines with savesets or the nearest later saveset.
   */
  async choose(
    machine: { readonly id: string; readonly name: string },
    at: 'latest' | number,
  ): Promise<Saveset> {
    const untilMs = at === 'latest' ? {} : { untilMs: at };
    const [found] = await this.list({ machineId: machine.id, ...untilMs, limit: 1 });
    if (found !== undefined) return found;
    const first = await this.#earliest(machine.id);
    if (first === undefined) throw await this.#noneOf(machine.name);
    const wanted = at === 'latest' ? first.takenAtMs : at;
    const later = formatDuration(first.takenAtMs - wanted);
    throw new RouseError(
      'not-found',
      `no saveset of ${machine.name} was taken at or before ${formatTime(wanted)}`,
      {
        advice: `The first one is ${later} later, of ${formatTime(first.takenAtMs)}: ${first.id}.`,
        details: { first: first.id, firstTakenAtMs: first.takenAtMs },
      },
    );
  }

  async #earliest(machineId: string): Promise<Saveset | undefined> {
    const row = await this.#database.query
      .selectFrom('savesets')
      .select('record')
      .where('machineId', '=', machineId)
      .orderBy('takenAtMs')
      .orderBy('id')
      .limit(1)
      .executeTakeFirst();
    return row === undefined ? undefined : (JSON.parse(row.record) as Saveset);
  }

  async #noneOf(name: string): Promise<RouseError> {
    const rows = await this.#database.query
      .selectFrom('savesets')
      .select('machineName')
      .distinct()
      .orderBy('machineName')
      .limit(5)
      .execute();
    const others = rows.map((row) => row.machineName);
    const advice =
      others.length === 0
        ? `Back it up first: rouse backup ${name}`
        : `Back it up first: rouse backup ${name}. There are savesets of ${joinOr(others)}.`;
    return new RouseError('not-found', `there is no saveset of ${name}`, { advice });
  }
}

export interface SavesetsFilter {
  readonly machineId?: string;
  readonly mtree?: string;
  readonly deviceId?: string;
  /** Taken at or after. */
  readonly fromMs?: number;
  /** Taken at or before. */
  readonly untilMs?: number;
  readonly limit?: number;
}
