import type { ProxyRow, Proxies as ProxyRows } from '../catalog/proxies.ts';
import { isRouseError, RouseError } from '../errors.ts';
import { isLinkLocal, isLoopback } from '../lib/addresses.ts';
import type { Clock } from '../lib/clock.ts';
import { hostAndPort } from '../lib/addresses.ts';
import { formatDuration, pick } from '../lib/text.ts';
import { linkLimits } from '../proxy/link-limits.ts';
import type { Proxy, ProxyStatus } from '../proxy/port.ts';
import { wireVersion } from '../proxy/wire.ts';
import type { ReachableProxy } from './port.ts';
import type { DrainRequest, ProxyChange, ProxyService, ProxyView } from './schema.ts';

/**
 * The proxies of this server. The catalog says who they are and what they last said; whether one
 * answers follows from when that was. A proxy that goes away and comes back is the same one: what
 * it serves went on meanwhile, and what waits for it goes on then.
 */
export interface RegistryDesk {
  readonly clock: Clock;
  readonly rows: ProxyRows;
  /** A way to call it; made once for each place that it is called at. */
  connect(row: ProxyRow): { readonly calls: Proxy; close(): void };
  /** Its vault's savesets enter the catalog; answers the devices that it has access to. */
  learn(name: string, status: ProxyStatus, calls: Proxy): Promise<readonly string[]>;
  deviceName(id: string): Promise<string>;
  activeRecoveries(): Promise<
    readonly { readonly id: string; readonly name: string; readonly proxy: string | null }[]
  >;
  tell(level: 'info' | 'warning' | 'error', kind: string, name: string, message: string): unknown;
}

interface Line {
  readonly place: string;
  readonly calls: Proxy;
  close(): void;
}

export class ProxyRegistry implements ProxyService {
  readonly #desk: RegistryDesk;
  readonly #lines = new Map<string, Line>();

  constructor(desk: RegistryDesk) {
    this.#desk = desk;
  }

  close(): void {
    for (const line of this.#lines.values()) line.close();
    this.#lines.clear();
  }

  rows(): Promise<readonly ProxyRow[]> {
    return this.#desk.rows.list();
  }

  /** Every proxy, ready to be called; embedded ones first. */
  async reachable(): Promise<readonly ReachableProxy[]> {
    const rows = await this.rows();
    const own = rows.toSorted((a, b) => (a.kind < b.kind ? -1 : a.kind > b.kind ? 1 : 0));
    return own.map((row) => ({
      name: row.name,
      address: addressesOf(row)[0] ?? '127.0.0.1',
      addresses: addressesOf(row),
      isAway: this.stateOf(row) === 'disconnected',
      calls: this.calls(row),
    }));
  }

  /** Throws `not-found` with the nearest names. */
  async row(name: string): Promise<ProxyRow> {
    const rows = await this.rows();
    const named = rows.map((row) => ({ ...row, id: row.name }));
    return pick('proxy', name, named, 'rouse proxy list');
  }

  calls(row: ProxyRow): Proxy {
    const place = `${row.callAddress}:${row.callPort}`;
    const known = this.#lines.get(row.name);
    if (known?.place === place) return known.calls;
    known?.close();
    const line = { ...this.#desk.connect(row), place };
    this.#lines.set(row.name, line);
    return line.calls;
  }

  stateOf(row: ProxyRow): ProxyView['state'] {
    const { heartbeatMs, draining } = row;
    const silentMs = this.#desk.clock.now() - (heartbeatMs ?? 0);
    if (heartbeatMs === null || silentMs > linkLimits.silentMsMax) return 'disconnected';
    return draining === 1 ? 'draining' : 'connected';
  }

  /** What it says of itself, as it says it; `more`: what the line that it came over knows. */
  async heard(
    name: string,
    status: ProxyStatus,
    more: Partial<Pick<ProxyRow, 'callAddress' | 'callPort' | 'addresses'>> = {},
  ): Promise<ProxyRow> {
    const { rows, clock } = this.#desk;
    const before = await this.row(name);
    const wasAway = this.stateOf(before) === 'disconnected';
    await rows.update(name, {
      ...more,
      version: status.version,
      wire: status.wire,
      status,
      heartbeatMs: clock.now(),
      skewMs: status.nowMs - clock.now(),
    });
    const row = await this.row(name);
    const isNew =
      before.status?.startedMs !== status.startedMs || before.status.vault.id !== status.vault.id;
    if ((isNew || before.devices.length === 0) && problemOf(row) === null) {
      await rows.update(name, { devices: await this.#learn(row, status) });
    }
    if (wasAway && row.kind === 'enrolled') {
      const message = `proxy ${name} answers, version ${status.version}`;
      await this.#desk.tell('info', 'proxy.connected', name, message);
    }
    return this.row(name);
  }

  /** A proxy that cannot be called gets no work, and is told why; its next heartbeat tries again. */
  async #learn(row: ProxyRow, status: ProxyStatus): Promise<readonly string[]> {
    try {
      return await this.#desk.learn(row.name, status, this.calls(row));
    } catch (error) {
      await this.#desk.rows.update(row.name, { devices: [] });
      if (row.kind === 'embedded' || !isRouseError(error)) throw error;
      const message = `the server hears proxy ${row.name}, and cannot call it: ${error.message}`;
      throw new RouseError('proxy-unreachable', message, {
        advice: 'Open its port for calls to the server; see rouse proxy enrol --call-address.',
        cause: error,
      });
    }
  }

  /** Said once for each time that one goes away; answers the names that were said. */
  async tellOfSilent(known: Set<string>): Promise<void> {
    for (const row of await this.rows()) {
      const isAway = this.stateOf(row) === 'disconnected';
      if (isAway && !known.has(row.name) && row.heartbeatMs !== null) {
        const silent = formatDuration(this.#desk.clock.now() - row.heartbeatMs);
        const message = `proxy ${row.name} has not been heard of for ${silent}`;
        await this.#desk.tell('warning', 'proxy.disconnected', row.name, message);
      }
      if (isAway) known.add(row.name);
      else known.delete(row.name);
    }
  }

  async list(): Promise<readonly ProxyView[]> {
    return Promise.all((await this.rows()).map((row) => this.#view(row)));
  }

  async get(name: string): Promise<ProxyView> {
    return this.#view(await this.row(name));
  }

  async #view(row: ProxyRow): Promise<ProxyView> {
    const { callAddress, callPort } = row;
    const recoveries = await this.#desk.activeRecoveries();
    return {
      name: row.name,
      kind: row.kind,
      state: this.stateOf(row),
      problem: problemOf(row),
      draining: row.draining === 1,
      addresses: addressesOf(row),
      calledAt: callAddress === null ? null : hostAndPort(callAddress, callPort ?? 0),
      labels: row.labels,
      onlyFor: row.onlyFor,
      neverFor: row.neverFor,
      devices: await Promise.all(
        row.devices.map(async (id) => ({ id, name: await this.#desk.deviceName(id) })),
      ),
      fingerprint: row.fingerprint,
      certificateEndsMs: row.certificateEndMs,
      enrolledMs: row.enrolledMs,
      heartbeatMs: row.heartbeatMs,
      skewMs: row.skewMs,
      recoveries: recoveries
        .filter(({ proxy }) => proxy === row.name)
        .map(({ id, name }) => ({ id, name })),
      status: row.status,
    };
  }

  async drain(name: string, { undo }: DrainRequest): Promise<ProxyView> {
    const row = await this.row(name);
    await this.#desk.rows.update(row.name, { draining: undo ? 0 : 1 });
    const message = undo ? `proxy ${row.name} takes work again` : `proxy ${row.name} is draining`;
    await this.#desk.tell('info', undo ? 'proxy.undrained' : 'proxy.draining', row.name, message);
    return this.get(row.name);
  }

  async change(name: string, change: ProxyChange): Promise<ProxyView> {
    const row = await this.row(name);
    const { labels, onlyFor, neverFor } = change;
    const patch = {
      ...(labels === undefined ? {} : { labels }),
      ...(onlyFor === undefined ? {} : { onlyFor }),
      ...(neverFor === undefined ? {} : { neverFor }),
    };
    if (Object.keys(patch).length > 0) await this.#desk.rows.update(row.name, patch);
    return this.get(row.name);
  }

  async remove(name: string): Promise<void> {
    const row = await this.row(name);
    if (row.kind === 'embedded') {
      throw new RouseError('wrong-state', `proxy ${row.name} is a part of this server`, {
        advice: `It can be given no work: rouse proxy drain ${row.name}`,
      });
    }
    const { recoveries } = await this.#view(row);
    if (recoveries.length > 0) {
      const names = recoveries.map((one) => `${one.name} (${one.id})`).join(', ');
      throw new RouseError('busy', `proxy ${row.name} serves ${names}`, {
        advice: 'End or relocate them first: rouse recoveries',
        details: { recoveries: recoveries.map(({ id }) => id) },
      });
    }
    await this.#desk.rows.remove(row.name, this.#desk.clock.now());
    this.#lines.get(row.name)?.close();
    this.#lines.delete(row.name);
    const message = `proxy ${row.name} was removed; its certificate is refused from now on`;
    await this.#desk.tell('info', 'proxy.removed', row.name, message);
  }
}

/** As told by an administrator; or all of its machine, loopback first when that is ours as well. */
export function addressesOf(row: ProxyRow): readonly string[] {
  if (row.addresses.length > 0) return row.addresses;
  const own = (row.status?.networks ?? []).map((cidr) => cidr.split('/')[0] ?? '');
  const outside = own.filter((address) => !isLoopback(address) && !isLinkLocal(address));
  return row.kind === 'embedded' ? ['127.0.0.1', ...outside] : outside;
}

/** Why a proxy that answers cannot be used, and what to do about it; null: it can. */
export function problemOf(row: ProxyRow): string | null {
  if (row.wire === null || row.wire === wireVersion) return null;
  const update = row.wire < wireVersion ? `update proxy ${row.name}` : 'update the server';
  return `it speaks version ${row.wire}, the server ${wireVersion}: ${update}`;
}
