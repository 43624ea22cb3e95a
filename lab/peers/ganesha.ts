import { mkdir, readFile, rm, writeFile } from 'node:fs/promises';
import { connect } from 'node:net';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { attempt, toolPath } from '../processes.ts';
import type { Processes } from '../processes.ts';

/**
 * nfs-ganesha, the NFS server we compare ourselves with: serving plain files, it has nothing to
 * deduplicate, unpack or verify. Runs inside a world of its own (enterWorld): it does not start
 * without rpcbind, which has one socket and one port for a whole machine.
 */
export interface Ganesha {
  readonly host: string;
  readonly nfsPort: number;
  readonly mountPort: number;
  /** The directory's path is the export's. */
  readonly exportPath: string;
  readonly pid: number;
  stop(): Promise<void>;
}

export interface GaneshaOptions {
  /** What is exported: plain files, read and write, to everybody in this world. */
  readonly directory: string;
  /** For configuration, log and state; made when missing. */
  readonly workDirectory: string;
  readonly nfsPort?: number;
  readonly mountPort?: number;
  /** Worker threads. Default: ganesha's own. */
  readonly workers?: number;
  /** Cores, as taskset(1) has them: `1`. */
  readonly cores?: string;
}

export async function hasGanesha(): Promise<boolean> {
  const { code } = await attempt('sh', ['-c', 'command -v ganesha.nfsd && command -v rpcbind']);
  return code === 0;
}

export async function startGanesha(
  processes: Processes,
  options: GaneshaOptions,
): Promise<Ganesha> {
  const nfsPort = options.nfsPort ?? 12_049;
  const mountPort = options.mountPort ?? 12_050;
  const work = options.workDirectory;
  await mkdir(join(work, 'recovery'), { recursive: true });
  await ensureRpcbind(processes);
  const configuration = join(work, 'ganesha.conf');
  const log = join(work, 'ganesha.log');
  await rm(log, { force: true });
  await writeFile(configuration, configurationText(options, nfsPort, mountPort));
  const pin = options.cores === undefined ? [] : ['taskset', '-c', options.cores];
  // -F: stay in the foreground, so that it is ours to end; -N EVENT: what goes wrong is told.
  const [command = '', ...args] = [
    ...pin,
    ...['ganesha.nfsd', '-F', '-f', configuration, '-L', log, '-N', 'EVENT'],
    ...['-p', join(work, 'ganesha.pid')],
  ];
  let exitCode: number | null | undefined;
  const child = processes.start(command, args, {
    stdio: 'ignore',
    env: { PATH: toolPath },
    onExit: (code) => (exitCode = code),
  });
  for (let tries = 0; !(await listens(nfsPort)); tries++) {
    if (exitCode !== undefined || tries > 200) {
      await processes.end(child);
      const said = await readFile(log, 'utf8').catch(() => '(no log)');
      throw new Error(`nfs-ganesha did not start:\n${said.slice(-2000)}`);
    }
    await sleep(100);
  }
  return {
    host: '127.0.0.1',
    nfsPort,
    mountPort,
    exportPath: options.directory,
    pid: child.pid ?? 0,
    stop: () => processes.end(child),
  };
}

async function ensureRpcbind(processes: Processes): Promise<void> {
  if (await listens(111)) return;
  await mkdir('/run/rpcbind', { recursive: true });
  processes.start('rpcbind', ['-f', '-w'], { stdio: 'ignore' });
  for (let tries = 0; tries < 100; tries++) {
    if (await listens(111)) return;
    await sleep(50);
  }
  throw new Error('rpcbind did not start (package rpcbind)');
}

function listens(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const probe = connect({ host: '127.0.0.1', port });
    probe.once('error', () => resolve(false));
    probe.once('connect', () => {
      probe.destroy();
      resolve(true);
    });
  });
}

/**
 * NFSv3 alone over TCP, no lock manager, no quotas. `Bind_addr` is left out: with only the loopback
 * interface up it makes ganesha fail.
 */
function configurationText(options: GaneshaOptions, nfsPort: number, mountPort: number): string {
  const workers = options.workers === undefined ? '' : `RPC_Ioq_ThrdMax = ${options.workers};`;
  return `NFS_CORE_PARAM {
  NFS_Protocols = 3;
  NFS_Port = ${nfsPort};
  MNT_Port = ${mountPort};
  Enable_NLM = false;
  Enable_RQUOTA = false;
  Enable_UDP = false;
  allow_set_io_flusher_fail = true;
  ${workers}
}
NFSv4 {
  Graceless = true;
  RecoveryRoot = "${join(options.workDirectory, 'recovery')}";
}
EXPORT {
  Export_Id = 1;
  Path = "${options.directory}";
  Pseudo = "/bench";
  Protocols = 3;
  Transports = TCP;
  Access_Type = RW;
  Squash = No_Root_Squash;
  SecType = sys;
  MaxRead = 1048576;
  MaxWrite = 1048576;
  PrefRead = 1048576;
  PrefWrite = 1048576;
  FSAL { Name = VFS; }
}
`;
}
