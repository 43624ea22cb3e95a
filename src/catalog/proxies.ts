import type { Insertable, Selectable, Updateable } from 'kysely';
import type { Database } from '../database/database.ts';
import type { MountsTable, ProxiesTable, ProxyTokensTable } from '../database/tables.ts';
import { RouseError } from '../errors.ts';
import type { ProxyStatus } from '../proxy/port.ts';
import { jsonColumns, type JsonColumns } from './json-columns.ts';

/** A proxy as it is remembered; whether it answers follows from `heartbeatMs`. */
interface Parsed {
  readonly addresses: readonly string[];
  readonly labels: Readonly<Record<string, string>>;
  readonly onlyFor: readonly string[];
  readonly neverFor: readonly string[];
  readonly devices: readonly string[];
  readonly status: ProxyStatus | null;
}
export type ProxyRow = JsonColumns<Selectable<ProxiesTable>, Parsed>;
export type ProxyPatch = Partial<Omit<ProxyRow, 'name'>>;
/** What a new proxy must say; the rest begins empty. */
export type NewProxy = ProxyPatch & Pick<ProxyRow, 'name' | 'kind' | 'addresses' | 'enrolledMs'>;

export type ProxyToken = Readonly<Selectable<ProxyTokensTable>>;
export type Mount = Readonly<Selectable<MountsTable>>;

const json = jsonColumns<Parsed>([
  'addresses',
  'labels',
  'onlyFor',
  'neverFor',
  'devices',
  'status',
]);

export class Proxies {
  readonly #database: Database;

  constructor(database: Database) {
    this.#database = database;
  }

  /** Adds it, or changes what is named of the one that has that name. */
  async put(proxy: NewProxy): Promise<void> {
    const empty = { draining: 0, labels: {}, onlyFor: [], neverFor: [], devices: [] };
    const { name: _, ...rest } = proxy;
    await this.#database.query
      .insertInto('proxies')
      .values(json.write({ ...empty, ...proxy }) as Insertable<ProxiesTable>)
      .onConflict((on) =>
        on.column('name').doUpdateSet(json.write(rest) as Updateable<ProxiesTable>),
      )
      .execute();
  }

  /** By name. */
  async list(): Promise<readonly ProxyRow[]> {
    const rows = await this.#database.query
      .selectFrom('proxies')
      .selectAll()
      .orderBy('name')
      .execute();
    return rows.map((row) => json.read(row));
  }

  async find(name: string): Promise<ProxyRow | undefined> {
    const row = await this.#database.query
      .selectFrom('proxies')
      .selectAll()
      .where('name', '=', name)
      .executeTakeFirst();
    return row === undefined ? undefined : json.read(row);
  }

  /** Changes what is named; the rest stays. Throws `not-found`. */
  async update(name: string, patch: ProxyPatch): Promise<void> {
    const { numUpdatedRows } = await this.#database.query
      .updateTable('proxies')
      .set(json.write(patch) as Updateable<ProxiesTable>)
      .where('name', '=', name)
      .executeTakeFirst();
    if (Number(numUpdatedRows) > 0) return;
    throw new RouseError('not-found', `no proxy is called "${name}"`);
  }

  /** Its certificates are refused from now on, by name. No error when it is gone. */
  async remove(name: string, removedMs: number): Promise<void> {
    await this.#database.transaction(async () => {
      await this.takeBack(name, removedMs);
      await this.#database.query.deleteFrom('proxies').where('name', '=', name).execute();
      await this.#database.query.deleteFrom('mounts').where('proxy', '=', name).execute();
    });
  }

  /** Its certificates are refused from now on; the proxy stays known. */
  async takeBack(name: string, removedMs: number): Promise<void> {
    const row = await this.find(name);
    for (const fingerprint of [row?.fingerprint, row?.nextFingerprint]) {
      if (!fingerprint) continue;
      await this.#database.query
        .insertInto('removedProxies')
        .values({ fingerprint, name, removedMs })
        .onConflict((on) => on.column('fingerprint').doUpdateSet({ name, removedMs }))
        .execute();
    }
  }

  /** When the certificate was taken back; undefined: it was not. */
  async removedMs(fingerprint: string): Promise<number | undefined> {
    const row = await this.#database.query
      .selectFrom('removedProxies')
      .select('removedMs')
      .where('fingerprint', '=', fingerprint)
      .executeTakeFirst();
    return row?.removedMs;
  }

  async addToken(token: ProxyToken): Promise<void> {
    await this.#database.query.insertInto('proxyTokens').values(token).execute();
  }

  async token(id: string): Promise<ProxyToken | undefined> {
    return this.#database.query
      .selectFrom('proxyTokens')
      .selectAll()
      .where('id', '=', id)
      .executeTakeFirst();
  }

  async useToken(id: string, used: Pick<ProxyToken, 'usedMs' | 'usedBy' | 'usedKey'>) {
    await this.#database.query.updateTable('proxyTokens').set(used).where('id', '=', id).execute();
  }

  /** Those that ended long ago say nothing to anybody any more. */
  async dropTokens(expiredBeforeMs: number): Promise<void> {
    await this.#database.query
      .deleteFrom('proxyTokens')
      .where('expiresMs', '<', expiredBeforeMs)
      .execute();
  }

  async mounts(hypervisorId: string): Promise<readonly Mount[]> {
    return this.#database.query
      .selectFrom('mounts')
      .selectAll()
      .where('hypervisorId', '=', hypervisorId)
      .execute();
  }

  /** `error` null: it went well. */
  async mounted(mount: Omit<Mount, 'okMs' | 'failedMs'>, nowMs: number): Promise<void> {
    const outcome = mount.error === null ? { okMs: nowMs } : { failedMs: nowMs };
    const { clusterId, error } = mount;
    await this.#database.query
      .insertInto('mounts')
      .values({ okMs: null, failedMs: null, ...mount, ...outcome })
      .onConflict((on) =>
        on
          .columns(['proxy', 'address', 'hypervisorId', 'hostId'])
          .doUpdateSet({ clusterId, error, ...outcome }),
      )
      .execute();
  }
}
