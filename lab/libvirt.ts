import { spawn } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { existsSync } from 'node:fs';
import { mkdir, readFile, rm, writeFile } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { runCommand } from '#src/lib/command.ts';

/**
 * A private libvirt for tests and the demo, without systemd and without touching the machine's
 * own: virtlogd and libvirtd run in their own mount and process namespace in which libvirt's
 * directories are bound to `directory`. The first process of that namespace reads its standard
 * input, which is a pipe from us: when we end, however we end, it ends, and with it the kernel
 * ends the daemons and every guest. The network namespace is the caller's.
 *
 * Paths of disks and sockets are the same inside and outside, except below libvirt's own
 * directories. Needs root, libvirt-daemon, libvirt-daemon-driver-qemu, libvirt-clients.
 */
export interface Libvirt {
  /** For `virsh -c`. */
  readonly uri: string;
  readonly directory: string;
  /** To be added to the environment of virsh; empty today. */
  readonly env: Readonly<Record<string, string>>;
  /** The process whose end ends everything; for `detached` ones, what to kill. */
  readonly pid: number;
  /** Ends guests and daemons, and removes what they left in `directory`. */
  stop(): Promise<void>;
}

export interface LibvirtOptions {
  /** Absolute and short: sockets in it must stay below 108 bytes (unix(7)). */
  readonly directory: string;
  /** Goes on when this process ends (the demo's --keep); then `kill` the pid. */
  readonly detached?: boolean;
}

export async function startLibvirt(options: LibvirtOptions): Promise<Libvirt> {
  const directory = resolve(options.directory);
  const socket = join(directory, 'run', 'libvirt-sock');
  if (Buffer.byteLength(join(directory, longestSocket)) > socketPathBytesMax) {
    throw new Error(`${directory} is too long a path for libvirt's sockets`);
  }
  for (const part of parts) await mkdir(join(directory, part), { recursive: true });
  await writeFile(join(directory, 'etc', 'qemu.conf'), qemuConf);
  await writeFile(join(directory, 'etc', 'libvirtd.conf'), daemonConf('libvirtd'));
  await writeFile(join(directory, 'etc', 'virtlogd.conf'), daemonConf('virtlogd'));
  const script = initScript(directory, options.detached ?? false);
  const flags = ['--mount', '--pid', '--fork', '--kill-child', '--mount-proc'];
  const child = spawn('unshare', [...flags, 'bash', '-c', script], {
    stdio: ['pipe', 'ignore', 'ignore'],
    detached: options.detached ?? false,
  });
  child.stdin?.on('error', () => undefined);
  const stop = () => stopLibvirt(child, directory);
  // The query is part of a URI, and a shell is never asked: no quoting is needed here.
  const uri = `qemu+unix:///system?socket=${encodeURIComponent(socket)}`;
  try {
    await waitUntilReady(child, uri, socket, directory);
  } catch (error) {
    await stop();
    throw error;
  }
  if (options.detached) child.unref();
  return { uri, directory, env: {}, pid: child.pid ?? 0, stop };
}

const parts = ['etc', 'lib', 'run', 'log', 'cache'] as const;

/** unix(7): sun_path. */
const socketPathBytesMax = 107;
const longestSocket = 'lib/qemu/domain-99-0123456789012345678901/monitor.sock';

/** Guests run as root, so that they reach every file of a test's directory. */
const qemuConf = `user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
cgroup_controllers = []
namespaces = []
`;

function daemonConf(daemon: string): string {
  const lines = ['log_level = 3', `log_outputs = "3:file:/var/log/libvirt/${daemon}.log"`];
  if (daemon === 'libvirtd') lines.push('auth_unix_rw = "none"');
  return `${lines.join('\n')}\n`;
}

function initScript(directory: string, detached: boolean): string {
  const bind = (part: string, place: string) =>
    `mkdir -p ${place}; mount --bind ${quote(join(directory, part))} ${place}`;
  return [
    'set -e',
    'mount --make-rprivate /',
    'mount -t tmpfs tmpfs /run',
    bind('run', '/run/libvirt'),
    bind('etc', '/etc/libvirt'),
    bind('lib', '/var/lib/libvirt'),
    bind('log', '/var/log/libvirt'),
    bind('cache', '/var/cache/libvirt'),
    'virtlogd </dev/null &',
    'libvirtd </dev/null &',
    detached ? 'exec sleep infinity </dev/null' : 'read -r _ || true',
  ].join('\n');
}

function quote(path: string): string {
  return `'${path.replaceAll("'", "'\\''")}'`;
}

/** Probing the emulators' capabilities takes libvirtd about 2 s the first time. */
const startMsMax = 60_000;
const pollMs = 50;

async function waitUntilReady(
  child: ChildProcess,
  uri: string,
  socket: string,
  directory: string,
): Promise<void> {
  for (let waited = 0; waited < startMsMax; waited += pollMs) {
    if (child.exitCode !== null || child.signalCode !== null) break;
    if (existsSync(socket)) {
      const result = await runCommand('virsh', ['-c', uri, 'version'], { timeoutMs: startMsMax });
      if (result.exit === 0) return;
    }
    await sleep(pollMs);
  }
  const log = join(directory, 'log', 'libvirtd.log');
  const said = await readFile(log, 'utf8').catch(() => 'it said nothing');
  throw new Error(`libvirt did not start in ${directory}: ${said.slice(-2000)}`);
}

async function stopLibvirt(child: ChildProcess, directory: string): Promise<void> {
  if (child.exitCode === null && child.signalCode === null && child.pid !== undefined) {
    const closed = new Promise((done) => child.once('exit', done));
    // The namespace's first process dies with unshare (--kill-child), and all others with it.
    child.kill('SIGKILL');
    await closed;
  }
  for (const part of parts) {
    await rm(join(directory, part), { recursive: true, force: true, maxRetries: 5 });
  }
}
