import { mkdir, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { tell } from './demo-report.ts';
import type { Stage } from './demo-stage.ts';
import { buildGuest, guestDomainXml, Heartbeats, SerialConsole } from './guest.ts';
import { startLibvirt } from './libvirt.ts';
import { run } from './processes.ts';
import type { World } from './world.ts';

/** A guest on production storage under a private libvirt. */
export async function libvirtStage({ directory }: World): Promise<Stage> {
  const production = join(directory, 'production');
  await mkdir(production, { recursive: true });
  const libvirt = await tell('A private libvirt', () =>
    startLibvirt({ directory: join(directory, 'v') }),
  );
  const guest = await tell('A guest of Debian packages', () =>
    buildGuest({ directory: production, name: 'web01' }),
  );
  // Persistent bitmaps, and so incremental backups, need qcow2.
  const disk = guest.disk.replace(/\.raw$/, '.qcow2');
  await run('qemu-img', ['convert', '-f', 'raw', '-O', 'qcow2', guest.disk, disk]);
  await rm(guest.disk);
  const serialLogPath = join(directory, 'serial.log');
  const commandSocketPath = join(directory, 'command.sock');
  await writeFile(serialLogPath, '');
  const serial = new SerialConsole({ logPath: serialLogPath, commandSocketPath });
  const virsh = (...args: string[]) => run('virsh', ['-c', libvirt.uri, ...args]);
  const undefine = () => virsh('undefine', 'web01', '--nvram', '--checkpoints-metadata');
  return {
    knownSha256: guest.knownSha256,
    upOptions: [],
    prepare: async (rouse) => {
      const domain = join(directory, 'web01.xml');
      const ports = { serialLogPath, commandSocketPath };
      await writeFile(domain, guestDomainXml({ name: 'web01', disk, format: 'qcow2', ...ports }));
      await tell('web01 boots', async () => {
        await virsh('define', domain);
        await virsh('start', 'web01');
        await new Heartbeats(serial).next(90_000);
      });
      const datastore = `production=${production}`;
      await rouse.json('hypervisor', 'add', 'lab', libvirt.uri, '--datastore', datastore);
      await tell('rouse backup web01, while it runs', () => rouse.json('backup', 'web01'));
      await serial.command('write 4');
      await tell('rouse backup web01, what changed', () => rouse.json('backup', 'web01'));
    },
    lose: () =>
      tell('web01 and its disk are destroyed', async () => {
        await virsh('destroy', 'web01');
        await undefine();
        await rm(disk);
      }),
    serial: async () => serial,
    registrations: async () => (/protocol=.nfs./.test(await virsh('dumpxml', 'web01')) ? 1 : 0),
    end: async () => {
      await virsh('destroy', 'web01');
      await undefine();
      await serial.close();
      await libvirt.stop();
    },
  };
}
