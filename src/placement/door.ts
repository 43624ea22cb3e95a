import type { Catalog } from '../catalog/catalog.ts';
import { RouseError } from '../errors.ts';
import { hostAndPort, isLoopback } from '../lib/addresses.ts';
import type { Clock } from '../lib/clock.ts';
import type { Identity } from '../lib/identity.ts';
import type { Random } from '../lib/random.ts';
import { linkLimits } from '../proxy/link-limits.ts';
import { ownNetworks } from '../proxy/reach.ts';
import type { OwnAuthority } from './authority.ts';
import type { Enrolment } from './enrolment.ts';
import type { LinkListener } from './listen.ts';
import type { ProxyRegistry } from './registry.ts';
import type { ProxyToken, ProxyTokenService, TokenRequest } from './schema.ts';

/**
 * Where proxies of other machines come in, when the server was started with a port for them. What
 * it needs takes a moment to load, so a server without one does not.
 */
export interface DoorParts {
  readonly config: {
    readonly tls: { readonly port: number; readonly host: string } | undefined;
    readonly tlsDirectory: string;
    readonly proxyAddresses: readonly string[];
  };
  readonly clock: Clock;
  readonly random: Random;
  readonly catalog: Catalog;
  readonly registry: ProxyRegistry;
  readonly log: {
    info(facts: object, message: string): void;
    error(facts: object, message: string): void;
  };
  transaction<T>(work: () => Promise<T>): Promise<T>;
}

export class ProxyDoor implements ProxyTokenService {
  readonly #parts: DoorParts;
  #open:
    | {
        readonly authority: OwnAuthority;
        readonly enrolment: Enrolment;
        readonly listener: LinkListener;
      }
    | undefined;

  constructor(parts: DoorParts) {
    this.#parts = parts;
  }

  /** What the server shows to its proxies; undefined: it has no port for them. */
  get identity(): Identity | undefined {
    return this.#open?.authority.identity;
  }

  /** The port that it listens on; undefined: none. */
  get port(): number | undefined {
    return this.#open?.listener.port;
  }

  async open(): Promise<void> {
    const { config, clock, random, catalog, registry, log, transaction } = this.#parts;
    if (config.tls === undefined) return;
    const { OwnAuthority } = await import('./authority.ts');
    const { Enrolment } = await import('./enrolment.ts');
    const { listenForProxies } = await import('./listen.ts');
    const authority = await OwnAuthority.open({ directory: config.tlsDirectory, clock, random });
    const enrolment = new Enrolment({
      clock,
      random,
      rows: catalog.proxies,
      registry,
      authority,
      transaction,
      tell: (level, kind, name, message) =>
        catalog.events.append({ level, kind, subject: { kind: 'proxy', id: name, name }, message }),
    });
    const listener = await listenForProxies(
      enrolment,
      { ...config.tls, identity: authority.identity },
      (error, call) => log.error({ err: error, call }, 'a call of a proxy failed unforeseen'),
    );
    this.#open = { authority, enrolment, listener };
    log.info({ port: listener.port }, 'proxies of other machines may join');
  }

  async close(): Promise<void> {
    await this.#open?.listener.close();
  }

  async renewWhenDue(): Promise<void> {
    if (this.#open === undefined) return;
    const { authority, listener } = this.#open;
    if (!(await authority.renewWhenDue())) return;
    listener.show(authority.identity);
    this.#parts.registry.close();
  }

  async newToken(request: TokenRequest): Promise<ProxyToken> {
    if (this.#open === undefined) {
      throw new RouseError('wrong-state', 'this server has no port for proxies of other machines', {
        advice: 'Start it with one: rouse up --tls-port 9443 --address ADDRESS',
      });
    }
    const { enrolment, authority, listener } = this.#open;
    const name = request.name ?? null;
    const { token, expiresMs } = await enrolment.newToken(
      name,
      request.lifeMs ?? linkLimits.tokenMsDefault,
    );
    const address = request.address ?? this.#ownAddress();
    const server = `https://${hostAndPort(address, listener.port)}`;
    return { token, server, fingerprint: authority.fingerprint, name, expiresMs };
  }

  /** As told; or the first by which others may reach this machine. */
  #ownAddress(): string {
    const own = ownNetworks().map((cidr) => cidr.split('/')[0] ?? '');
    const outside = [...this.#parts.config.proxyAddresses, ...own].find((one) => !isLoopback(one));
    return outside ?? '127.0.0.1';
  }
}
