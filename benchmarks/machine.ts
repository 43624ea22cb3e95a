import { readFile } from 'node:fs/promises';
import { cpus, release, totalmem } from 'node:os';
import { attempt } from '../lab/processes.ts';

/** What the figures were measured on and with. */
export interface Machine {
  readonly processor: string;
  readonly cores: number;
  readonly memoryGiB: number;
  readonly kernel: string;
  readonly system: string;
  readonly fileSystem: string;
  readonly node: string;
  readonly commit: string;
  readonly peers: Readonly<Record<string, string>>;
  /** Load average when the run began: others' work shows here. */
  readonly loadBefore: string;
}

export async function describeMachine(directory: string): Promise<Machine> {
  const said = async (command: string, ...args: string[]) => {
    const result = await attempt(command, args).catch(() => undefined);
    return result?.code === 0 ? result.stdout.trim() : '';
  };
  const issue = await readFile('/etc/os-release', 'utf8').catch(() => '');
  const peers: Record<string, string> = {};
  for (const name of ['nfs-ganesha', 'restic', 'borgbackup']) {
    const version = await said('dpkg-query', '-W', '-f', '${Version}', name);
    if (version !== '') peers[name] = version;
  }
  const [first] = cpus();
  return {
    processor: first?.model.trim() ?? 'unknown',
    cores: cpus().length,
    memoryGiB: Math.round(totalmem() / 2 ** 30),
    kernel: release(),
    system: /^PRETTY_NAME="(.*)"$/m.exec(issue)?.[1] ?? 'unknown',
    fileSystem: await said('stat', '-f', '-c', '%T', directory),
    node: process.version,
    commit: await said('git', 'rev-parse', '--short', 'HEAD'),
    peers,
    loadBefore: (await readFile('/proc/loadavg', 'utf8')).split(' ').slice(0, 3).join(' '),
  };
}

export function machineText(machine: Machine): string {
  const peers = Object.entries(machine.peers).map(([name, version]) => `${name} ${version}`);
  return [
    `- ${machine.processor}, ${machine.cores} cores, ${machine.memoryGiB} GiB`,
    `- ${machine.system}, Linux ${machine.kernel}, ${machine.fileSystem}, Node ${machine.node}`,
    `- commit ${machine.commit}; peers: ${peers.join(', ') || 'none installed'}`,
    `- load average before: ${machine.loadBefore}`,
  ].join('\n');
}
