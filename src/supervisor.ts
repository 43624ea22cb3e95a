import { type ChildProcess, spawn } from 'node:child_process';
import * as fs from 'node:fs';
import * as path from 'node:path';
import { fileURLToPath } from 'node:url';
import { type Config, configOf, type UpOptions } from './config.ts';
import { type Problem, RouseError } from './errors.ts';
import type { Clock } from './lib/clock.ts';
import { takeLock } from './lib/lock.ts';
import { supervisorLimits } from './limits.ts';

/**
 * `rouse up`: starts the proxy and the server as two processes, because running machines live on
 * the proxy and must not notice what happens to the server. A crashed one is started again with
 * a growing pause; both end when this process is told to stop or dies.
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

export async function startUp(
  options: UpOptions,
  clock: Clock,
  say: (line: string) => void,
): Promise<Up> {
  const config = configOf(options);
  makeDirectories(config);
  const lock = takeLock(config.lockFile, `The data directory ${config.data}`);
  const proxy = new Child('proxy', options, config, clock, say);
  const server = new Child('server', options, config, clock, say);
  const stop = async () => {
    await server.stop();
    await proxy.stop();
  };
  try {
    const facts = { ...(await proxy.start()), ...(await server.start()) };
    const ended = Promise.all([proxy.ended, server.ended]).then(() => lock.release());
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

class Child {
  readonly #role: Role;
  readonly #options: UpOptions;
  readonly #log: string;
  readonly #clock: Clock;
  readonly #say: (line: string) => void;
  readonly ended: Promise<void>;
  #end: () => void = () => undefined;
  #process: ChildProcess | undefined;
  #stopping = false;
  #pauseMs: number = supervisorLimits.restartPauseMsMin;

  constructor(
    role: Role,
    options: UpOptions,
    config: Config,
    clock: Clock,
    say: (line: string) => void,
  ) {
    this.#role = role;
    this.#options = options;
    this.#log = path.join(config.logs, `${role}.log`);
    this.#clock = clock;
    this.#say = say;
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
    const entry = fileURLToPath(new URL('./cli/main.ts', import.meta.url));
    const child = spawn(process.execPath, [entry, this.#role], {
      stdio: ['ignore', log, log, 'ipc'],
      env: {
        ...process.env,
        ROUSE_UP_OPTIONS: JSON.stringify(this.#options),
        // A child that is started again finds its code compiled (Node's module cache).
        NODE_COMPILE_CACHE: path.join(this.#options.data, 'compiled'),
      },
    });
    fs.closeSync(log);
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
          new RouseError('internal', `the ${this.#role} ended at once (${signal ?? code})`, {
            advice: `Read ${this.#log}.`,
          }),
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
      this.#say(`The ${this.#role} ended (${how}); it is started again.`);
      void this.#again();
    };
    if (child.exitCode !== null || child.signalCode !== null) return restart('at once');
    child.once('exit', (code, signal) => restart(signal ?? `exit code ${code}`));
  }

  async #again(): Promise<void> {
    await this.#clock.sleep(this.#pauseMs);
    this.#pauseMs = Math.min(this.#pauseMs * 2, supervisorLimits.restartPauseMsMax);
    if (this.#stopping) return this.#end();
    const child = this.#spawn();
    this.#ready(child).then(
      () => this.#say(`The ${this.#role} runs again (process ${child.pid}).`),
      (error: unknown) => this.#say(`The ${this.#role} did not start: ${String(error)}`),
    );
    this.#watch(child);
  }

  async stop(): Promise<void> {
    this.#stopping = true;
    const child = this.#process;
    if (child === undefined || child.exitCode !== null || child.signalCode !== null) {
      return this.#end();
    }
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
