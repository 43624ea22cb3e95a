import { newRequest } from '../lib/certificates.ts';
import type { Clock } from '../lib/clock.ts';
import { type HttpClient, httpClient } from '../lib/http-client.ts';
import { certificateFacts, newKey } from '../lib/identity.ts';
import { SecureAgent } from '../lib/secure-agent.ts';
import { isRouseError, RouseError } from '../errors.ts';
import { linkLimits } from './link-limits.ts';
import { type JoinedProxy, writeJoined } from './joined.ts';
import type { HeartbeatAnswer, HeartbeatCall, RenewAnswer } from './link-wire.ts';
import type { ProxyStatus } from './port.ts';

/**
 * An enrolled proxy's line to its server: heartbeats, and a new certificate in good time. It never
 * ends by itself: a server that is away, or refuses, is told of in the log and asked again; what is
 * served to hosts goes on meanwhile.
 */
export interface ServerLinkParts {
  /** Where the identity is kept. */
  readonly file: string;
  readonly joined: JoinedProxy;
  /** The port on which the server's calls are listened to. */
  readonly callPort: number;
  readonly clock: Clock;
  readonly log: {
    info(facts: object, message: string): void;
    error(facts: object, message: string): void;
  };
  status(): Promise<ProxyStatus>;
  /** The new identity is written down: the listener is to show it from now on. */
  renewed(joined: JoinedProxy): void;
}

export class ServerLink {
  readonly #parts: ServerLinkParts;
  readonly #stopping = new AbortController();
  #joined: JoinedProxy;
  #client: HttpClient;
  #running: Promise<void> | undefined;
  /** The last trouble: each is logged once. */
  #trouble = '';

  constructor(parts: ServerLinkParts) {
    this.#parts = parts;
    this.#joined = parts.joined;
    this.#client = this.#connect();
  }

  #connect(): HttpClient {
    const { server, identity } = this.#joined;
    const check = ({ role }: { readonly role: string }) =>
      role === 'Rouse server'
        ? undefined
        : new RouseError('forbidden', `who answers at ${server} is no server of Rouse`);
    const agent = new SecureAgent({ identity, check });
    return httpClient({ url: server, peer: 'server', agent, repeatable: true });
  }

  start(): void {
    this.#running = this.#run();
  }

  async close(): Promise<void> {
    this.#stopping.abort();
    this.#client.close();
    await this.#running;
  }

  async #run(): Promise<void> {
    const { clock } = this.#parts;
    const { signal } = this.#stopping;
    while (!signal.aborted) {
      const isRefused = await this.#beat().then(
        () => false,
        (error: unknown) => this.#tell(error),
      );
      const pauseMs = isRefused ? linkLimits.refusedPauseMs : linkLimits.heartbeatMs;
      await clock.sleep(pauseMs, signal).catch(() => undefined);
    }
  }

  /** True: the server knows us no more, and asking often would change nothing. */
  #tell(error: unknown): boolean {
    if (this.#stopping.signal.aborted) return false;
    const text = error instanceof Error ? error.message : String(error);
    if (text !== this.#trouble) {
      const advice = isRouseError(error) ? error.advice : undefined;
      this.#parts.log.error({ err: error, advice }, `the server cannot be told: ${text}`);
    }
    this.#trouble = text;
    return isRouseError(error, 'forbidden') || isRouseError(error, 'unauthorised');
  }

  /** One heartbeat; and a renewal, when a third of the certificate's time is left. */
  async #beat(): Promise<void> {
    const { callPort, log, clock } = this.#parts;
    const { addresses, callAddress, identity } = this.#joined;
    const status = await this.#parts.status();
    const call: HeartbeatCall = { status, addresses, callAddress, callPort };
    const timeoutMs = linkLimits.heartbeatTimeoutMs;
    const answer = (await this.#client.post('/v1/link/heartbeat', call, {
      timeoutMs,
    })) as HeartbeatAnswer;
    if (this.#trouble !== '') log.info({}, 'the server is told again');
    this.#trouble = '';
    if (answer.problem !== null) throw new RouseError('wrong-state', answer.problem);
    const { beginMs, endMs } = certificateFacts(identity.certificate);
    if (endMs - clock.now() < (endMs - beginMs) * linkLimits.renewShare) await this.renew();
  }

  async renew(): Promise<void> {
    const { file, log } = this.#parts;
    const key = newKey();
    const request = await newRequest(key, this.#joined.name);
    const answer = (await this.#client.post('/v1/link/renew', { request })) as RenewAnswer;
    const { certificate } = answer;
    const { authority } = this.#joined.identity;
    const joined = { ...this.#joined, identity: { key, certificate, authority } };
    await writeJoined(file, joined);
    this.#joined = joined;
    this.#client.close();
    this.#client = this.#connect();
    this.#parts.renewed(joined);
    log.info({ until: certificateFacts(certificate).endMs }, 'the certificate is renewed');
  }
}
