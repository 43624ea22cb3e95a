import { type ChildProcess, spawn } from 'node:child_process';
import * as fs from 'node:fs';
import * as path from 'node:path';
import { fileURLToPath } from 'node:url';
import { type Config, configOf, type UpOptions } from './config.ts';
import { type Problem, RouseError, toRouseError } from './errors.ts';
import type { Clock } from './lib/clock.ts';
import { takeLock } from './lib/lock.ts';
import { supervisorLimits } from './limits.ts';
import { readJoined } from './proxy/joined.ts';

/**
 * `rouse up`: starts the proxy and the server as two processes, because running machines live on
 * the proxy and must not notice what happens to the server. A crashed one is started again with
 * a growing pause; both end when this process is told to stop or dies. In the directory of an
 * enrolled proxy there is no server to start.
 */
export type Role = 'server' | 'proxy';

/** What a child tells its supervisor over the IPC channel. */
export type ChildMessage =
  | { readonly type: 'ready'; readonly facts: Readonly<Record<string, string | number>> }
  | { readonly type: 'failed'; readonly problem: Problem };

export interface Up {
  /** Facts of the first start, for the person at the terminal. */
  readonly facts: Readonly<Record<string, string | number>>;
  /** Resolves when both have ended after `stop`. */
  readonly ended: Promise<void>;
  stop(): Promise<void>;
}

/** `entry`: the program of both roles, given the role's name; another one in tests. */
export async function startUp(
  options: UpOptions,
  clock: Clock,
  say: (line: string) => void,
  entry: string = fileURLToPath(new URL('./cli/main.ts', import.meta.url)),
): Promise<Up> {
  const config = configOf(options);
  makeDirectories(config);
  const lock = takeLock(config.lockFile, `The data directory ${config.data}`);
  const parts = { options, logs: config.logs, clock, say, entry };
  const proxy = new Child('proxy', parts);
  // An enrolled proxy has its server elsewhere.
  const isEnrolled = readJoined(config.joinedFile) !== undefined;
  const server = isEnrolled ? undefined : new Child('server', parts);
  const stop = async () => {
    await server?.stop();
    await proxy.stop();
  };
  try {
    const facts = { ...(await proxy.start()), ...(await server?.start()) };
    const ended = Promise.all([proxy.ended, server?.ended]).then(() => lock.release());
    return { facts, ended, stop };
  } catch (error) {
    await stop();
    lock.release();
    throw error;
  }
}

function makeDirectories(config: Config): void {
  for (const directory of [config.data, config.run, config.logs, config.clones, config.scratch]) {
    try {
      fs.mkdirSync(directory, { recursive: true, mode: 0o700 });
    } catch (error) {
      throw new RouseError('bad-request', `${directory} cannot be created: ${String(error)}`, {
        advice: 'Name a directory that this user may write: rouse up --data DIR',
        cause: error,
      });
    }
  }
}

/**
 * Flags of Node for a role. The proxy's young generation is small: it allocates little but chunks
 * of input, 64 KiB each, outside of V8's heap. Collected seldom, they outlive it, and each 64 MiB of
 * them then cost a collection of everything: a fifth of the time under synced writes, measured.
 */
export function nodeFlags(role: Role): readonly string[] {
  return role === 'proxy'
    ? [`--max-semi-space-size=${supervisorLimits.proxySemiSpaceMebibytes}`]
    : [];
}

interface ChildParts {
  readonly options: UpOptions;
  readonly logs: string;
  readonly clock: Clock;
  readonly entry: string;
  say(line: string): void;
}

class Child {
  readonly #role: Role;
  readonly #parts: ChildParts;
  readonly #log: string;
  readonly #clock: Clock;
  readonly #pause = new AbortController();
  readonly ended: Promise<void>;
  #end: () => void = () => undefined;
  #process: ChildProcess | undefined;
  #stopping = false;
  #pauseMs: number = supervisorLimits.restartPauseMsMin;

  constructor(role: Role, parts: ChildParts) {
    this.#role = role;
    this.#parts = parts;
    this.#log = path.join(parts.logs, `${role}.log`);
    this.#clock = parts.clock;
    this.ended = new Promise((resolve) => {
      this.#end = resolve;
    });
  }

  /** The first start must succeed; later ones are repeated until they do. */
  async start(): Promise<Readonly<Record<string, string | number>>> {
    const child = this.#spawn();
    const facts = await this.#ready(child);
    this.#watch(child);
    return facts;
  }

  #spawn(): ChildProcess {
    const log = fs.openSync(this.#log, 'a', 0o600);
    const { entry, options } = this.#parts;
    const child = spawn(process.execPath, [...nodeFlags(this.#role), entry, 'role', this.#role], {
      stdio: ['ignore', log, log, 'ipc'],
      env: {
        ...process.env,
        ROUSE_UP_OPTIONS: JSON.stringify(options),
        // A child that is started again finds its code compiled (Node's module cache).
        NODE_COMPILE_CACHE: path.join(options.data, 'compiled'),
      },
    });
    fs.closeSync(log);
    // Sending to one that is just dying fails; its exit says all there is to say.
    child.on('error', () => undefined);
    this.#process = child;
    return child;
  }

  #ready(child: ChildProcess): Promise<Readonly<Record<string, string | number>>> {
    return new Promise((resolve, reject) => {
      child.on('message', (message: ChildMessage) => {
        if (message.type === 'ready') resolve(message.facts);
        else reject(RouseError.fromProblem(message.problem));
      });
      child.once('error', reject);
      child.once('exit', (code, signal) =>
        reject(
          new RouseError(
            'internal',
            `the ${this.#role} ended at once (${howEnded(code, signal)})`,
            {
              advice: `Read ${this.#log}.`,
            },
          ),
        ),
      );
    });
  }

  #watch(child: ChildProcess): void {
    const startedMs = this.#clock.monotonic();
    const restart = (how: string) => {
      if (this.#stopping) return this.#end();
      const lived = this.#clock.monotonic() - startedMs;
      if (lived > supervisorLimits.restartPauseMsMax) {
        this.#pauseMs = supervisorLimits.restartPauseMsMin;
      }
      this.#parts.say(`The ${this.#role} ended (${how}); it is started again. Log: ${this.#log}`);
      void this.#again();
    };
    if (isGone(child)) return restart('at once');
    child.once('exit', (code, signal) => restart(howEnded(code, signal)));
  }

  async #again(): Promise<void> {
    const { say } = this.#parts;
    const role = this.#role;
    await this.#clock.sleep(this.#pauseMs, this.#pause.signal).catch((error: unknown) => {
      if (!this.#stopping) throw error;
    });
    this.#pauseMs = Math.min(this.#pauseMs * 2, supervisorLimits.restartPauseMsMax);
    if (this.#stopping) return this.#end();
    let child: ChildProcess;
    try {
      child = this.#spawn();
    } catch (error) {
      // No space for the log, no file descriptor: the other role runs on, this one is tried again.
      say(`The ${role} cannot be started: ${toRouseError(error, this.#log).message}`);
      return this.#again();
    }
    this.#ready(child).then(
      () => say(`The ${role} runs again (process ${child.pid}).`),
      (error: unknown) => say(`The ${role} did not start: ${toRouseError(error, role).message}`),
    );
    this.#watch(child);
  }

  async stop(): Promise<void> {
    this.#stopping = true;
    this.#pause.abort();
    const child = this.#process;
    if (child === undefined || isGone(child)) return this.#end();
    const gone = new Promise<void>((resolve) => child.once('exit', () => resolve()));
    child.kill('SIGTERM');
    const patience = new AbortController();
    const late = this.#clock
      .sleep(supervisorLimits.stopMsMax, patience.signal)
      .then(() => child.kill('SIGKILL'))
      .catch(() => undefined);
    await gone;
    patience.abort();
    await late;
    this.#end();
  }
}

/** One that could not be spawned has no process id and never exits. */
function isGone(child: ChildProcess): boolean {
  return child.pid === undefined || child.exitCode !== null || child.signalCode !== null;
}

function howEnded(code: number | null, signal: NodeJS.Signals | null): string {
  return signal === null ? `exit code ${code}` : `killed by ${signal}`;
}
