/**
 * A machine with the Linux kernel's NFS client: Debian's cloud kernel, an initramfs, and a disk
 * with fio and stress-ng of this machine. It reaches servers on the loopback of its world as
 * 10.0.2.2, through QEMU's user network; they see it come from 127.0.0.1.
 *
 * Programs of the disk run as `chroot /tools fio ...`; what is mounted on /tools/mnt is /mnt there.
 */
import { createHash } from 'node:crypto';
import { existsSync } from 'node:fs';
import * as fs from 'node:fs/promises';
import { join } from 'node:path';
import { cpioArchive, entry } from './cpio.ts';
import { busyboxBase, copyWithLibraries, moduleEntries, nfsModules } from './guest.ts';
import { cacheDirectory, debianKernel } from './kernel.ts';
import { run } from './processes.ts';
import { Qemu } from './qemu.ts';
import type { World } from './world.ts';

const tools = ['/usr/bin/fio', '/usr/bin/stress-ng'];
const here = import.meta.dirname;

/** Boots it and returns once it takes commands (`machine.serial.shell`). */
export async function startNfsGuest(world: World, name = 'nfs-guest'): Promise<Qemu> {
  const directory = join(world.directory, name);
  await fs.mkdir(directory, { recursive: true });
  const kernel = await debianKernel();
  const initramfs = join(directory, 'initrd');
  await fs.writeFile(initramfs, await nfsInitramfs());
  const machine = new Qemu({
    processes: world.processes,
    directory,
    disks: [`file=${await toolsDisk()},format=raw,readonly=on`],
    memoryMiB: 384,
    kernel: {
      image: kernel.image,
      initramfs,
      options: 'console=ttyS0,115200 quiet loglevel=4 mitigations=off random.trust_cpu=on panic=-1',
    },
  });
  await machine.serial.waitFor(/ROUSE listening/, 90_000);
  return machine;
}

async function nfsInitramfs(): Promise<Buffer> {
  const script = async (path: string, from: string) =>
    entry.file(path, await fs.readFile(join(here, from)), 0o755);
  return cpioArchive([
    ...(await busyboxBase()),
    ...['etc', 'etc/rouse', 'tools', 'mnt', 'run', 'tmp', 'root'].map(entry.directory),
    await script('init', 'nfs-guest/init'),
    await script('etc/rouse/common', 'guest/common'),
    await script('etc/rouse/console', 'guest/console'),
    ...(await moduleEntries(await debianKernel(), [
      ...['virtio_pci', 'virtio_blk', 'virtio_net'],
      ...nfsModules,
    ])),
  ]);
}

/** fio and stress-ng with all their libraries: 90 MiB, made once. */
async function toolsDisk(): Promise<string> {
  const key = createHash('sha256').update(await fs.readFile(import.meta.filename));
  for (const path of tools)
    key.update(
      await fs.readFile(path).catch(() => {
        throw new Error(`${path} is missing: run scripts/setup`);
      }),
    );
  const directory = join(cacheDirectory, 'guests');
  const path = join(directory, `tools-${key.digest('hex').slice(0, 24)}.ext4`);
  if (existsSync(path)) return path;
  await fs.mkdir(directory, { recursive: true });
  const work = await fs.mkdtemp(join(directory, 'building-'));
  try {
    const root = join(work, 'root');
    for (const name of ['proc', 'sys', 'dev', 'tmp', 'mnt', 'run', 'etc'])
      await fs.mkdir(join(root, name), { recursive: true });
    await copyWithLibraries(tools, root);
    const used = Number((await run('du', ['-sm', root])).split('\t')[0]);
    const disk = join(work, 'disk');
    await run('mke2fs', [
      '-q',
      '-t',
      'ext4',
      '-O',
      '^has_journal',
      '-d',
      root,
      disk,
      `${used + 24}m`,
    ]);
    await fs.rename(disk, path);
  } finally {
    await fs.rm(work, { recursive: true, force: true });
  }
  return path;
}
