import type { ChildProcess } from 'node:child_process';
import { join } from 'node:path';
import { attempt, eventually } from './processes.ts';
import type { World } from './world.ts';

/** The command line as a person uses it, in a world, on a data directory of its own. */
export class RouseCommand {
  readonly #world: World;
  readonly #data: string;
  readonly #verbose: boolean;
  readonly #upOptions: readonly string[];
  #up: ChildProcess | undefined;

  constructor(world: World, data: string, verbose = false, upOptions: readonly string[] = []) {
    this.#world = world;
    this.#data = data;
    this.#verbose = verbose;
    this.#upOptions = upOptions;
  }

  get data(): string {
    return this.#data;
  }

  /** Starts `rouse up` and returns once the server answers. */
  async up(): Promise<void> {
    const args = [launcher, 'up', '--data', this.#data, ...this.#upOptions];
    const stdio = this.#verbose ? 'inherit' : 'ignore';
    this.#up = this.#world.processes.start('bash', ['-c', 'exec "$@"', 'rouse', ...args], {
      stdio: ['ignore', stdio, 'inherit'],
    });
    const up = this.#up;
    await eventually(
      'rouse up',
      async () => {
        if (up.exitCode !== null) throw new Error(`rouse up ended with code ${up.exitCode}`);
        const { code } = await this.attempt('status');
        return code === 0 ? true : undefined;
      },
      30_000,
      100,
    );
  }

  async stop(): Promise<void> {
    if (this.#up !== undefined) await this.#world.processes.end(this.#up, 30_000);
  }

  /** Exit code and output, whatever they are. */
  attempt(...args: string[]): ReturnType<typeof attempt> {
    return attempt(launcher, args, { env: { ROUSE_DATA: this.#data } });
  }

  async run(...args: string[]): Promise<string> {
    if (this.#verbose) process.stdout.write(`$ rouse ${args.join(' ')}\n`);
    const { code, stdout, stderr } = await this.attempt(...args);
    if (code === 0) return stdout;
    throw new Error(`rouse ${args.join(' ')}: exit code ${code}\n${stdout}${stderr}`);
  }

  async json<T = unknown>(...args: string[]): Promise<T> {
    // The shape is the caller's to know: docs/guide/command-line.md describes each command's.
    return JSON.parse(await this.run(...args, '--json')) as T;
  }
}

const launcher = join(import.meta.dirname, '..', 'bin', 'rouse');
