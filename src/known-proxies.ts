import type { Catalog } from './catalog/catalog.ts';
import type { ProxyRow } from './catalog/proxies.ts';
import type { Config } from './config.ts';
import { RouseError } from './errors.ts';
import { hostAndPort } from './lib/addresses.ts';
import type { Clock } from './lib/clock.ts';
import { httpClient } from './lib/http-client.ts';
import type { CertificateFacts } from './lib/identity.ts';
import type { Random } from './lib/random.ts';
import { SecureAgent } from './lib/secure-agent.ts';
import { linkLimits } from './proxy/link-limits.ts';
import { Ranking } from './placement/ranking.ts';
import { ProxyRegistry } from './placement/registry.ts';
import { ProxyDoor } from './placement/door.ts';
import { proxyClient } from './proxy/client.ts';
import type { Proxy, ProxyStatus } from './proxy/port.ts';
import type { ServerLog } from './server.ts';

export interface KnownProxiesParts {
  readonly config: Config;
  readonly random: Random;
  readonly clock: Clock;
  readonly log: ServerLog;
  readonly catalog: Catalog;
  transaction<T>(work: () => Promise<T>): Promise<T>;
}

/** The server's proxies: the embedded one on its socket, and what placement knows of all. */
export class KnownProxies {
  readonly registry: ProxyRegistry;
  readonly ranking: Ranking;
  /** Where proxies of other machines come in. */
  readonly door: ProxyDoor;
  readonly #parts: KnownProxiesParts;
  readonly #stopping = new AbortController();
  #watching: Promise<void> | undefined;

  constructor(parts: KnownProxiesParts) {
    const { clock, catalog } = parts;
    this.#parts = parts;
    const rows = catalog.proxies;
    this.registry = new ProxyRegistry({
      clock,
      rows,
      connect: (row) => (row.kind === 'embedded' ? this.#connect() : this.#callRemote(row)),
      learn: (name, status, calls) => this.#learn(name, status, calls),
      deviceName: async (id) => (await catalog.devices.find(id))?.name ?? id,
      activeRecoveries: () => catalog.recoveries.list({ active: true }),
      tell: (level, kind, name, message) =>
        catalog.events.append({
          level,
          kind,
          subject: { kind: 'proxy', id: name, name },
          message,
        }),
    });
    this.door = new ProxyDoor({ ...parts, registry: this.registry });
    this.ranking = new Ranking({
      clock,
      rows,
      registry: this.registry,
      activeRecoveries: () => catalog.recoveries.list({ active: true }),
    });
  }

  #connect(): { calls: Proxy; close(): void } {
    const { config } = this.#parts;
    const http = httpClient({ url: `unix:${config.proxySocket}`, peer: 'proxy', repeatable: true });
    return {
      calls: proxyClient((route, body, timeoutMs) => http.post(route, body, { timeoutMs })),
      close: () => http.close(),
    };
  }

  /** Over TLS, in both directions with certificates that this server gave. */
  #callRemote(row: ProxyRow): { calls: Proxy; close(): void } {
    const { callAddress, callPort, name } = row;
    const { door } = this;
    const identity = door.identity;
    if (identity === undefined || callAddress === null || callPort === null) {
      const message =
        identity === undefined
          ? `proxy ${name} is on another machine, and this server was started without --tls-port`
          : `proxy ${name} has not been heard of since it joined`;
      const away = async () => {
        throw new RouseError('proxy-unreachable', message, {
          advice:
            identity === undefined
              ? 'Start it with --tls-port.'
              : 'Start it there: rouse up --data DIR',
        });
      };
      return { calls: proxyClient(away), close: () => undefined };
    }
    const agent = new SecureAgent({ identity, check: (peer) => this.#wrongPeer(name, peer) });
    const url = `https://${hostAndPort(callAddress, callPort)}`;
    const http = httpClient({ url, peer: 'proxy', agent, repeatable: true });
    return {
      calls: proxyClient((route, body, timeoutMs) => http.post(route, body, { timeoutMs })),
      close: () => http.close(),
    };
  }

  #wrongPeer(name: string, peer: CertificateFacts): RouseError | undefined {
    if (peer.role === 'Rouse proxy' && peer.name === name) return undefined;
    return new RouseError('proxy-unreachable', `who answers for proxy ${name} is ${peer.name}`, {
      advice: `Two proxies give the same address: compare them with rouse proxy show ${name}.`,
    });
  }

  /** Knows the embedded proxy, hears it if it answers, and looks after it from then on. */
  async start(): Promise<void> {
    const { config, catalog, clock, log } = this.#parts;
    const { proxyName: name, proxyAddresses: addresses } = config;
    await this.door.open();
    const known = await catalog.proxies.find(name);
    const enrolledMs = known?.enrolledMs ?? clock.now();
    await catalog.proxies.put({ name, kind: 'embedded', addresses, enrolledMs });
    const isThere = await this.#hear().then(
      () => true,
      (error: unknown) => {
        log.error({ err: error }, 'the proxy does not answer yet');
        return false;
      },
    );
    this.#watching = this.#watch(isThere);
  }

  async stop(): Promise<void> {
    this.#stopping.abort();
    await this.#watching;
    await this.door.close();
    this.registry.close();
  }

  async #watch(isThere: boolean): Promise<void> {
    const { clock, log } = this.#parts;
    const { signal } = this.#stopping;
    const silent = new Set<string>();
    for (let isHeard = isThere; ;) {
      const pauseMs = isHeard ? linkLimits.heartbeatMs : linkLimits.firstWordMs;
      await clock.sleep(pauseMs, signal).catch(() => undefined);
      if (signal.aborted) return;
      try {
        await this.#hear();
        isHeard = true;
        await this.door.renewWhenDue();
      } catch (error) {
        if (isHeard) log.error({ err: error }, 'the proxy is away');
      }
      await this.registry.tellOfSilent(silent).catch((error: unknown) => {
        log.error({ err: error }, 'what proxies are silent could not be written down');
      });
    }
  }

  async #hear(): Promise<void> {
    const embedded = await this.embedded();
    const { proxyName } = this.#parts.config;
    await this.registry.heard(proxyName, await embedded.status());
  }

  async embedded(): Promise<Proxy> {
    return this.calls(this.#parts.config.proxyName);
  }

  /** Throws `not-found` with the nearest names. */
  async calls(name: string): Promise<Proxy> {
    return this.registry.calls(await this.registry.row(name));
  }

  /** The vault is right: device and savesets of the catalog are made equal to it. */
  async #learn(name: string, status: ProxyStatus, calls: Proxy): Promise<readonly string[]> {
    const { catalog, config, clock } = this.#parts;
    const { id: vaultId, path: address } = status.vault;
    const known = (await catalog.devices.list()).find((device) => device.vaultId === vaultId);
    const id = known?.id ?? (name === config.proxyName ? name : `vault-of-${name}`);
    const createdMs = known?.createdMs ?? clock.now();
    const device = { id, name: known?.name ?? name, kind: 'directory', createdMs } as const;
    await catalog.devices.put({ ...device, address, vaultId });
    await catalog.savesets.rebuild(await calls.savesets(), id);
    return [id];
  }

  /** Its savesets may have changed: they are read again. */
  async refresh(name: string): Promise<void> {
    const calls = await this.calls(name);
    const devices = await this.#learn(name, await calls.status(), calls);
    await this.#parts.catalog.proxies.update(name, { devices });
  }

  /** Where a saveset lies that this proxy stores. */
  async deviceOf(name: string): Promise<string> {
    const [device] = (await this.registry.row(name)).devices;
    if (device !== undefined) return device;
    throw new RouseError('proxy-unreachable', `no device of proxy ${name} is known yet`, {
      advice: `It has not been heard of since it joined: rouse proxy show ${name}`,
    });
  }
}
