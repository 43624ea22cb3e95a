import { readFileSync } from 'node:fs';
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { buildGuest, guestDomainXml, Heartbeats, SerialConsole } from '#lab/guest.ts';
import { startLibvirt, type Libvirt } from '#lab/libvirt.ts';
import { run } from '#lab/processes.ts';
import { RouseCommand } from '#lab/rouse-command.ts';
import type { World } from '#lab/world.ts';

/** A private libvirt with a guest that runs, and a `rouse up` that knows it. */
export interface GuestScene {
  readonly rouse: RouseCommand;
  readonly libvirt: Libvirt;
  readonly serial: SerialConsole;
  readonly beats: Heartbeats;
  readonly knownSha256: string;
  readonly production: string;
  virsh(...values: string[]): Promise<string>;
  /** Destroys machine and registration, as if its server had burned. */
  loseMachine(): Promise<void>;
  close(): Promise<void>;
}

export async function openGuestScene(world: World): Promise<GuestScene> {
  const { directory } = world;
  const production = join(directory, 'production');
  await mkdir(production, { recursive: true });
  const libvirt = await startLibvirt({ directory: join(directory, 'v') });
  const virsh = (...values: string[]) => run('virsh', ['-c', libvirt.uri, ...values]);
  const guest = await buildGuest({ directory: production, name: 'web01' });
  const disk = join(production, 'web01.qcow2');
  await run('qemu-img', ['convert', '-f', 'raw', '-O', 'qcow2', guest.disk, disk]);
  const serialLogPath = join(directory, 'serial.log');
  const commandSocketPath = join(directory, 'command.sock');
  await writeFile(serialLogPath, '');
  const xml = join(directory, 'web01.xml');
  const domain = { name: 'web01', disk, format: 'qcow2' as const };
  await writeFile(xml, guestDomainXml({ ...domain, serialLogPath, commandSocketPath }));
  const serial = new SerialConsole({ logPath: serialLogPath, commandSocketPath });
  const beats = new Heartbeats(serial);
  await virsh('define', xml);
  await virsh('start', 'web01');
  await beats.next(120_000);
  const rouse = new RouseCommand(world, join(directory, 'data'));
  await rouse.up();
  const datastore = `production=${production}`;
  await rouse.run('hypervisor', 'add', 'lab', libvirt.uri, '--datastore', datastore);
  return {
    rouse,
    libvirt,
    serial,
    beats,
    knownSha256: guest.knownSha256,
    production,
    virsh,
    loseMachine: async () => {
      await virsh('destroy', 'web01');
      await virsh('undefine', 'web01', '--nvram', '--checkpoints-metadata');
    },
    close: async () => {
      await serial.close();
      await rouse.stop();
      await libvirt.stop();
      await world.end();
    },
  };
}

/** Process id of the running server or proxy, as `rouse status` says it. */
export async function pidOf(rouse: RouseCommand, role: 'server' | 'proxy'): Promise<number> {
  const status = await rouse.json<Record<'server' | 'proxy', { pid: number } | null>>('status');
  const pid = status[role]?.pid;
  if (pid === undefined) throw new Error(`the ${role} does not answer`);
  return pid;
}

/** What the processes of a `rouse up` wrote, for messages of failing tests. */
export function logsOf(rouse: RouseCommand): string {
  return ['server', 'proxy']
    .map((role) => readFileSync(join(rouse.data, 'log', `${role}.log`), 'utf8').slice(-3000))
    .join('\n');
}
