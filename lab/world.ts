/**
 * A world of its own for a test or the demo: its own network (loopback only), mounts (/run is empty)
 * and process ids, so that fixed ports such as 111 are free, nothing outside is disturbed, and
 * everything that was started inside is gone when it ends, however it ends.
 *
 *     const world = await enterWorld();
 *
 * as the first statement of a script or test file: the process starts itself again inside and
 * leaves with the inner one's exit code, so code after it runs inside only. As root, or as any user
 * where the kernel allows user namespaces. Several hosts: `addHost`. There is no way to the
 * network from inside: what has to be downloaded is downloaded before.
 */
import { spawn } from 'node:child_process';
import type { ChildProcess, SpawnOptions } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { mkdtemp } from 'node:fs/promises';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { debianKernel } from './kernel.ts';
import { attempt, Processes, run, toolPath } from './processes.ts';
import type { RunOptions, RunResult } from './processes.ts';

export interface WorldOptions {
  /** Makes sure, before there is no network, that guests can be built. Default true. */
  readonly guests?: boolean;
}

/** The addresses of the world itself, as its hosts see it: where a server listens. */
export const worldAddresses = { ipv4: '10.77.0.1', ipv6: 'fd77::1' } as const;

const marker = 'ROUSE_WORLD';

export async function enterWorld(options: WorldOptions = {}): Promise<World> {
  const inside = process.env[marker];
  if (inside !== undefined) {
    writeFileSync(join(inside, 'entered'), '');
    return new World(inside);
  }
  if (options.guests !== false) await debianKernel();
  process.exit(await runInside());
}

export class World {
  /** An empty directory that is removed with the world. */
  readonly directory: string;
  readonly processes = new Processes();
  #hosts = 0;

  constructor(directory: string) {
    this.directory = join(directory, 'w');
  }

  /** A further host on the network: its own addresses, its own ports. */
  async addHost(name: string): Promise<Host> {
    const number = ++this.#hosts;
    const host = new Host(name, number, this.processes);
    const link = `veth${number}`;
    const inside = ['ip', 'netns', 'exec', name];
    const steps = [
      ['ip', 'netns', 'add', name],
      ['ip', 'link', 'add', link, 'type', 'veth', 'peer', 'name', 'eth0', 'netns', name],
      ['ip', 'addr', 'add', `${worldAddresses.ipv4}/32`, 'dev', link],
      ['ip', 'addr', 'add', `${worldAddresses.ipv6}/128`, 'dev', link, 'nodad'],
      ['ip', 'link', 'set', link, 'up'],
      ['ip', 'route', 'add', `${host.ipv4}/32`, 'dev', link],
      ['ip', '-6', 'route', 'add', `${host.ipv6}/128`, 'dev', link],
      [...inside, 'ip', 'link', 'set', 'lo', 'up'],
      [...inside, 'ip', 'addr', 'add', `${host.ipv4}/24`, 'dev', 'eth0'],
      [...inside, 'ip', 'addr', 'add', `${host.ipv6}/64`, 'dev', 'eth0', 'nodad'],
      [...inside, 'ip', 'link', 'set', 'eth0', 'up'],
    ];
    for (const [command, ...args] of steps) await run(command ?? '', args);
    return host;
  }

  /** Ends what was started here. What is left ends with the world. */
  async end(): Promise<void> {
    await this.processes.endAll();
  }
}

/** A host of a world. Programs on it see its network and the files of the world. */
export class Host {
  readonly name: string;
  readonly ipv4: string;
  readonly ipv6: string;
  readonly #processes: Processes;

  constructor(name: string, number: number, processes: Processes) {
    this.name = name;
    this.ipv4 = `10.77.0.${10 + number}`;
    this.ipv6 = `fd77::${10 + number}`;
    this.#processes = processes;
  }

  run(command: string, args: readonly string[], options?: RunOptions): Promise<string> {
    return run('ip', ['netns', 'exec', this.name, command, ...args], options);
  }

  attempt(command: string, args: readonly string[], options?: RunOptions): Promise<RunResult> {
    return attempt('ip', ['netns', 'exec', this.name, command, ...args], options);
  }

  start(command: string, args: readonly string[], options?: SpawnOptions): ChildProcess {
    return this.#processes.start('ip', ['netns', 'exec', this.name, command, ...args], options);
  }

  /** Another address of this host, such as `10.77.0.99/24`. */
  async addAddress(address: string): Promise<void> {
    const flags = address.includes(':') ? ['nodad'] : [];
    await this.run('ip', ['addr', 'add', address, 'dev', 'eth0', ...flags]);
    const [bare = ''] = address.split('/');
    const link = `veth${Number(this.ipv4.split('.')[3]) - 10}`;
    await run('ip', [...(bare.includes(':') ? ['-6'] : []), 'route', 'add', bare, 'dev', link]);
  }
}

/** A TCP port that nobody listens on now. */
export function freePort(address = '127.0.0.1'): Promise<number> {
  return new Promise((resolve, reject) => {
    const server = createServer().once('error', reject);
    server.listen(0, address, () => {
      const bound = server.address();
      server.close(() => resolve(typeof bound === 'object' && bound !== null ? bound.port : 0));
    });
  });
}

const temporary = new Set<string>();

/** An empty directory that is removed when this process exits. */
export async function temporaryDirectory(name = 'test'): Promise<string> {
  const path = await mkdtemp(join(tmpdir(), `rouse-${name}-`));
  if (temporary.size === 0)
    process.once('exit', () => {
      for (const each of temporary) rmSync(each, { recursive: true, force: true });
    });
  temporary.add(path);
  return path;
}

// ---------------------------------------------------------------------------------------------

/**
 * A shell is process 1 of the world: it collects orphans, and the world ends with it. The
 * file systems of /proc and /sys belong to the new world as well.
 */
const firstProcess = [
  'mount -t sysfs sysfs /sys 2>/dev/null',
  'mount -t tmpfs -o mode=755 run /run && mkdir -p /run/lock /run/netns && ip link set lo up',
  '"$@"; exit $?',
].join('\n');

async function runInside(): Promise<number> {
  const directory = mkdtempSync(join(tmpdir(), 'rouse-world-'));
  const remove = () => rmSync(directory, { recursive: true, force: true });
  process.once('exit', remove);
  await run('mkdir', [join(directory, 'w')]);
  const asRoot = process.getuid?.() === 0 ? [] : ['--map-root-user'];
  const namespaces = ['--net', '--mount', '--pid', '--fork', '--kill-child', '--mount-proc'];
  const again = [process.execPath, ...process.execArgv, ...process.argv.slice(1)];
  // If this process is killed, so is `unshare`, and with it the whole world.
  const child = spawn(
    'setpriv',
    [
      ...['--pdeathsig', 'KILL', 'unshare', ...asRoot, ...namespaces],
      ...['sh', '-c', firstProcess, 'world', ...again],
    ],
    { stdio: 'inherit', env: { ...process.env, PATH: toolPath, [marker]: directory } },
  );
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const)
    process.on(signal, () => passOn(signal, child));
  const code = await new Promise<number>((resolve) => {
    child.once('error', () => resolve(127));
    child.once('exit', (status) => resolve(status ?? 1));
  });
  if (!existsSync(join(directory, 'entered')))
    process.stderr.write(
      'This needs its own network and mount namespace: run it as root, or allow user namespaces\n' +
        '(sysctl kernel.unprivileged_userns_clone=1); in a container, start it with --privileged.\n',
    );
  return code;
}

/**
 * Gives the inner process time to end by itself, then ends the world. A terminal sends Ctrl-C to
 * both of us; other signals are handed on.
 */
function passOn(signal: NodeJS.Signals, child: ChildProcess): void {
  const inner = child.pid === undefined ? undefined : onlyChild(onlyChild(child.pid));
  if (inner !== undefined && !(signal === 'SIGINT' && process.stdin.isTTY))
    process.kill(inner, signal);
  setTimeout(() => child.kill('SIGKILL'), 15_000).unref();
}

function onlyChild(pid: number | undefined): number | undefined {
  if (pid === undefined) return undefined;
  try {
    const said = readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8').trim();
    return said === '' ? undefined : Number(said.split(' ')[0]);
  } catch {
    return undefined;
  }
}
