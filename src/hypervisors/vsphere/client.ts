import { isRouseError, RouseError } from '../../errors.ts';
import type { Clock } from '../../lib/clock.ts';
import type { BackupPass } from '../port.ts';
import { vsphereLimits } from './limits.ts';
import { isFault, soapFault, VimFault } from './faults.ts';
import { TrustedHttp } from './http.ts';
import type { HttpReply } from './http.ts';
import type { Trust } from './trust.ts';
import { at, envelope, leaf, parseVim, refAt, textAt } from './vim-xml.ts';
import type { Ref, VimNode, Xml } from './vim-xml.ts';

/**
 * Our SOAP client. One session, made when first needed, shared by all calls and made anew, once,
 * when the manager has ended it: NotAuthenticated means that nothing was done, so the call is sent
 * again. What lives in a session (views, collectors, filters) dies with it; who uses those runs
 * `inSession`, which does the whole piece of work again.
 */
export interface VimOptions {
  /** `https://vcenter.example/sdk`. */
  readonly url: string;
  readonly user: string;
  /** Asked for at each login; never kept, never part of an error. */
  readonly password: () => Promise<string>;
  readonly trust: Trust;
  readonly clock: Clock;
  /** Instead of user and password: a session that another client of ours has. */
  readonly pass?: BackupPass['session'];
}

export interface CallOptions {
  readonly timeoutMs?: number;
  readonly signal?: AbortSignal | undefined;
  /** Uses a view or a collector of this session: a lost session is the caller's to mend. */
  readonly bound?: boolean;
  /** Waits for news by design. */
  readonly isLong?: boolean;
}

export interface FetchOptions {
  readonly only?: number;
  readonly headers?: Readonly<Record<string, string>>;
  readonly timeoutMs?: number;
  readonly signal?: AbortSignal | undefined;
}

/** Of ServiceContent: what there is to call, and who speaks. */
export interface Service {
  readonly content: VimNode;
  /** `VirtualCenter` or `HostAgent`. */
  readonly apiType: string;
  readonly fullName: string;
  readonly apiVersion: string;
  readonly rootFolder: Ref;
  readonly propertyCollector: Ref;
}

interface Session {
  readonly service: Service;
  /** As the manager calls us. */
  readonly userName: string;
  readonly key: string;
}

const serviceInstance: Ref = { type: 'ServiceInstance', id: 'ServiceInstance' };

/** Calls that change nothing, so that one may be sent twice. */
const repeatable = /^(?:Retrieve|Query|Has|Fetch|Current|Find)/u;
/** What any manager answers in moments: questions, and the views and filters to ask them with. */
const quick =
  /^(?:Retrieve|Has|Fetch|Current|Find|(?:Create|Destroy)(?:ContainerView|View|Filter|PropertyFilter|PropertyCollector)$)/u;

export class VimClient {
  readonly clock: Clock;
  readonly http: TrustedHttp;
  /** Ids of the tasks that this process began. */
  readonly begun = new Begun();
  readonly #options: VimOptions;
  readonly #path: string;
  #cookies = new Map<string, string>();
  #session: Promise<Session> | undefined;
  #refused: { readonly error: RouseError; readonly untilMs: number } | undefined;
  /** A pass opens one session and no second one. */
  #isPassUsed = false;

  constructor(options: VimOptions) {
    const url = new URL(options.url);
    this.#options = options;
    this.#path = url.pathname === '/' || url.pathname === '' ? '/sdk' : url.pathname;
    this.clock = options.clock;
    this.http = new TrustedHttp(url, options.trust);
  }

  /** Where it is, for sentences. */
  get name(): string {
    return this.http.name;
  }

  async service(): Promise<Service> {
    return (await this.#ensureSession()).service;
  }

  async userName(): Promise<string> {
    return (await this.#ensureSession()).userName;
  }

  /** UserSession.key, by which the manager is asked what this session may do. */
  async sessionKey(): Promise<string> {
    return (await this.#ensureSession()).key;
  }

  /** A manager of the service, by its name in ServiceContent. */
  async manager(name: string): Promise<Ref> {
    const { content, apiType } = await this.service();
    const found = refAt(content, name);
    if (found !== undefined) return found;
    throw new RouseError('hypervisor-unsupported', `${this.name} (${apiType}) has no ${name}`);
  }

  /** The `…Response` element. Faults are thrown as VimFault. */
  async call(
    method: string,
    self: Ref,
    args: readonly Xml[] = [],
    options: CallOptions = {},
  ): Promise<VimNode> {
    const session = this.#ensureSession();
    await session;
    try {
      return await this.#send(method, self, args, options);
    } catch (error) {
      if (!isFault(error, 'NotAuthenticated') || options.bound === true) throw error;
      await this.#renew(session);
      return this.#send(method, self, args, options);
    }
  }

  /** Work with views or collectors; done once more when its session was lost under it. */
  async inSession<T>(work: () => Promise<T>): Promise<T> {
    const session = this.#ensureSession();
    await session;
    try {
      return await work();
    } catch (error) {
      const isLost =
        isFault(error, 'NotAuthenticated') ||
        (isFault(error, 'ManagedObjectNotFound') && this.#session !== session);
      if (!isLost) throw error;
      await this.#renew(session);
      return work();
    }
  }

  /** A file of a datastore, or a picture: GET with the session's cookie. */
  async fetch(path: string, options: FetchOptions = {}): Promise<HttpReply> {
    const get = () =>
      this.http.call({
        method: 'GET',
        path,
        headers: { ...options.headers, Cookie: this.cookies() },
        only: options.only,
        timeoutMs: options.timeoutMs ?? vsphereLimits.fileTimeoutMs,
        replyBytesMax: vsphereLimits.fileBytesMax,
        signal: options.signal,
        repeatable: true,
      });
    const session = this.#ensureSession();
    await session;
    const reply = await get();
    if (reply.status !== 401) return reply;
    await this.#renew(session);
    return get();
  }

  /** For a client elsewhere: a session like this one; where none can be made, this one. */
  async pass(): Promise<BackupPass['session']> {
    const manager = await this.manager('sessionManager');
    try {
      const answer = await this.call('AcquireCloneTicket', manager);
      const ticket = textAt(answer, 'returnval') ?? '';
      if (ticket !== '') return { ticket };
    } catch (error) {
      // ESXi itself has no tickets.
      if (!isFault(error, 'NotSupported', 'NotImplemented', 'MethodNotFound')) throw error;
    }
    return { cookie: this.cookies() };
  }

  /** The session's cookies, for other requests to the same manager. */
  cookies(): string {
    return [...this.#cookies].map(([name, value]) => `${name}=${value}`).join('; ');
  }

  /** Logs out, if logged in, and closes connections; the next call begins anew. */
  async close(): Promise<void> {
    const session = this.#session;
    this.#session = undefined;
    const { pass } = this.#options;
    try {
      // A session that is shared is its owner's to end.
      const known = pass !== undefined && 'cookie' in pass ? undefined : await session;
      const manager = known && refAt(known.service.content, 'sessionManager');
      if (manager !== undefined) await this.#send('Logout', manager, [], { timeoutMs: 5_000 });
    } catch (error) {
      if (!(error instanceof RouseError)) throw error;
    }
    this.#cookies.clear();
    this.http.close();
  }

  #ensureSession(): Promise<Session> {
    this.#session ??= this.#begin();
    return this.#session;
  }

  /** One login for all that found the same session lost. */
  async #renew(lost: Promise<Session>): Promise<void> {
    if (this.#session === lost) {
      this.#cookies.clear();
      this.#session = undefined;
    }
    await this.#ensureSession();
  }

  #begin(): Promise<Session> {
    const begun = this.#login();
    begun.catch(() => {
      if (this.#session === begun) this.#session = undefined;
    });
    return begun;
  }

  async #login(): Promise<Session> {
    const refused = this.#refused;
    if (refused !== undefined && this.clock.monotonic() < refused.untilMs) throw refused.error;
    const service = await this.#serviceContent();
    const manager = refAt(service.content, 'sessionManager');
    if (manager === undefined) throw notVim(this.name, 'it has no session manager');
    if (this.#options.pass !== undefined) return this.#enter(service, manager, this.#options.pass);
    const { user } = this.#options;
    const password = await this.#options.password();
    try {
      const args = [leaf('userName', user), leaf('password', password)];
      const answer = await this.#send('Login', manager, args, {});
      this.#refused = undefined;
      return {
        service,
        userName: textAt(answer, 'returnval.userName') ?? user,
        key: textAt(answer, 'returnval.key') ?? '',
      };
    } catch (error) {
      if (!isFault(error, 'InvalidLogin', 'NoPermission')) throw error;
      const message = `${this.name} refuses the login of ${user}: ${error.message}`;
      const refusal = new VimFault(error.code, error.type, message, { advice: error.advice });
      const untilMs = this.clock.monotonic() + vsphereLimits.refusedLoginMs;
      this.#refused = { error: refusal, untilMs };
      throw refusal;
    }
  }

  /** SessionManager.CloneSession: its ticket is good once; or the cookie of a session that is shared. */
  async #enter(service: Service, manager: Ref, pass: BackupPass['session']): Promise<Session> {
    if (this.#isPassUsed) throw passedAway(this.name);
    this.#isPassUsed = true;
    if ('cookie' in pass) {
      for (const pair of pass.cookie.split('; ')) {
        const [name = '', ...value] = pair.split('=');
        this.#cookies.set(name, value.join('='));
      }
      return { service, userName: '', key: '' };
    }
    try {
      const answer = await this.#send(
        'CloneSession',
        manager,
        [leaf('cloneTicket', pass.ticket)],
        {},
      );
      const userName = textAt(answer, 'returnval.userName') ?? '';
      return { service, userName, key: textAt(answer, 'returnval.key') ?? '' };
    } catch (error) {
      if (!isFault(error, 'InvalidLogin', 'NotAuthenticated')) throw error;
      throw passedAway(this.name);
    }
  }

  async #serviceContent(): Promise<Service> {
    const answer = await this.#send('RetrieveServiceContent', serviceInstance, [], {});
    const content = at(answer, 'returnval');
    const rootFolder = refAt(content, 'rootFolder');
    const propertyCollector = refAt(content, 'propertyCollector');
    if (content === undefined || rootFolder === undefined || propertyCollector === undefined) {
      throw notVim(this.name, 'its service content is empty');
    }
    return {
      content,
      rootFolder,
      propertyCollector,
      apiType: textAt(content, 'about.apiType') ?? '',
      fullName: textAt(content, 'about.fullName') ?? 'unknown',
      apiVersion: textAt(content, 'about.apiVersion') ?? '',
    };
  }

  async #send(
    method: string,
    self: Ref,
    args: readonly Xml[],
    options: CallOptions,
  ): Promise<VimNode> {
    const { readTimeoutMs, callTimeoutMs } = vsphereLimits;
    const cookie = this.cookies();
    const call = this.http.call({
      method: 'POST',
      path: this.#path,
      headers: {
        'Content-Type': 'text/xml; charset="utf-8"',
        SOAPAction: 'urn:vim25/6.7',
        ...(cookie === '' ? {} : { Cookie: cookie }),
      },
      body: envelope(method, self, args),
      timeoutMs: options.timeoutMs ?? (quick.test(method) ? readTimeoutMs : callTimeoutMs),
      signal: options.signal,
      repeatable: repeatable.test(method),
      isLong: options.isLong ?? false,
    });
    const reply = await (quick.test(method) ? call.catch(hangs) : call);
    this.#keepCookies(reply);
    return this.#answer(reply, method, self);
  }

  #answer(reply: HttpReply, method: string, self: Ref): VimNode {
    const text = reply.body.toString('utf8');
    // Faults come with 500; what is neither comes from something in front of the manager.
    const isSoap = /xml/iu.test(reply.headers['content-type'] ?? 'xml') && text.trim() !== '';
    if (!isSoap || (reply.status !== 200 && reply.status !== 500)) {
      const code = [502, 503, 504].includes(reply.status)
        ? 'hypervisor-unreachable'
        : 'hypervisor-error';
      throw new RouseError(code, `${this.name} answers ${method} with HTTP ${reply.status}`, {
        advice:
          code === 'hypervisor-unreachable'
            ? 'It is starting, or in trouble: try again in a minute.'
            : 'Check that the address is that of a vCenter or an ESXi host, ending in /sdk.',
      });
    }
    const body = at(parseVim(text, method), 'Body');
    const fault = soapFault(body, `${method} of ${self.id}`);
    if (fault !== undefined) throw fault;
    const answer = body?.children[0];
    if (answer?.name === `${method}Response`) return answer;
    throw notVim(this.name, `${method} is answered by ${answer?.name ?? 'nothing'}`);
  }

  #keepCookies(reply: HttpReply): void {
    for (const line of reply.headers['set-cookie'] ?? []) {
      const [, name, value = ''] = /^\s*([^=;\s]+)=([^;]*)/u.exec(line) ?? [];
      if (name !== undefined) this.#cookies.set(name, value.trim());
    }
  }
}

/** Who takes a question and never answers it is away as much as who cannot be reached. */
function hangs(error: unknown): never {
  if (!isRouseError(error, 'time-out')) throw error;
  throw new RouseError('hypervisor-unreachable', error.message, {
    advice: 'It hangs, or is overloaded; nothing was changed by the question.',
    cause: error,
  });
}

/** Not `unauthorised`: another try with a new pass mends it. */
function passedAway(name: string): RouseError {
  return new RouseError('hypervisor-error', `the session at ${name} has ended`, {
    advice: 'It is begun anew by itself; when it ends again and again, look at its log.',
  });
}

/** The newest of them: who asks about a task does so while it runs. */
class Begun {
  readonly #ids = new Set<string>();

  add(id: string): void {
    this.#ids.add(id);
    const [oldest] = this.#ids;
    if (this.#ids.size > vsphereLimits.begunTasksMax && oldest !== undefined) {
      this.#ids.delete(oldest);
    }
  }

  has(id: string): boolean {
    return this.#ids.has(id);
  }
}

function notVim(name: string, why: string): RouseError {
  return new RouseError('hypervisor-error', `${name} does not speak vSphere: ${why}`, {
    advice: 'Check that the address is that of a vCenter or an ESXi host, ending in /sdk.',
  });
}
