/**
 * A real Linux machine to back up and wake: Debian's cloud kernel and busybox on a disk of its own
 * (MBR, a FAT partition with the boot loader, kernel and initramfs, an ext4 root), which boots by
 * itself in BIOS mode. Built without root and without loop devices.
 *
 * What it says on its serial port (each line starts with `ROUSE`, see lab/guest/): `boot`, `fsck
 * clean`, `boots N`, `ready`, `known SHA256`, and a `heartbeat N UPTIME` a second, which is also on
 * its disk before it is said. It takes commands on the second one (serial.ts) and obeys the power
 * button.
 */
import { createHash } from 'node:crypto';
import { existsSync } from 'node:fs';
import * as fs from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { systemClock } from '#src/lib/clock.ts';
import { cpioArchive, entry } from './cpio.ts';
import type { CpioEntry } from './cpio.ts';
import { cacheDirectory, debianKernel, librariesOf, modulesInOrder } from './kernel.ts';
import type { Kernel } from './kernel.ts';
import { knownBytes, sha256Of } from './known-bytes.ts';
import { run } from './processes.ts';

export { guestDomainXml } from './domain.ts';
export type { GuestDomain } from './domain.ts';
export { Heartbeats, SerialConsole } from './serial.ts';
export { bootSectorCount, buildBootSector } from './boot-sector.ts';

export interface GuestOptions {
  /** Where `<name>.raw` is put. */
  readonly directory: string;
  readonly name: string;
  /** At least 96; default 128. */
  readonly sizeMiB?: number;
  /** The file /data/known.bin; default 4 MiB from seed 1. */
  readonly knownMiB?: number;
  readonly seed?: number;
  /** Time between heartbeats, default 1000; to the nearest 10. */
  readonly heartbeatMs?: number;
  /** Programs of this machine to take along with their libraries, such as /usr/sbin/qemu-ga. */
  readonly programs?: readonly string[];
}

export interface Guest {
  readonly name: string;
  /** The raw disk. */
  readonly disk: string;
  readonly sizeBytes: number;
  /** SHA-256 of the guest's /data/known.bin. */
  readonly knownSha256: string;
}

const scripts = join(import.meta.dirname, 'guest');
const keptTemplates = 12;
const MiB = 1024 * 1024;
const sectorBytes = 512;

/** The boot partition holds a kernel of 14 MiB and an initramfs of 2.5 MiB. */
const bootOffset = MiB;
const bootBytes = 23 * MiB;
const rootOffset = bootOffset + bootBytes;

/** What the initramfs loads: the ways QEMU can show a disk. ext4 is part of this kernel. */
const diskModules = ['virtio_pci', 'virtio_blk', 'virtio_scsi', 'sd_mod', 'ata_piix', 'nvme'];
/** What the running system loads. */
const systemModules = ['button', 'evdev', 'virtio_net', 'virtio_console', 'virtio_balloon'];
export const nfsModules = ['nfs', 'nfsv3'];

/** Builds the guest's disk: about 5 s the first time, then a sparse copy of the cached one. */
export async function buildGuest(options: GuestOptions): Promise<Guest> {
  const sizeBytes = (options.sizeMiB ?? 128) * MiB;
  if (sizeBytes < 96 * MiB) throw new Error('a guest needs at least 96 MiB');
  const known = knownBytes(options.seed ?? 1, (options.knownMiB ?? 4) * MiB);
  const template = await templateDisk(sizeBytes, known, options.programs ?? []);
  const disk = join(options.directory, `${options.name}.raw`);
  await fs.mkdir(options.directory, { recursive: true });
  await run('cp', ['--sparse=always', '--reflink=auto', template, disk]);
  await writeBootConfiguration(disk, options.name, options.heartbeatMs ?? 1000);
  return { name: options.name, disk, sizeBytes, knownSha256: sha256Of(known) };
}

async function templateDisk(
  sizeBytes: number,
  known: Uint8Array,
  programs: readonly string[],
): Promise<string> {
  const kernel = await debianKernel();
  const key = createHash('sha256').update(`${kernel.release} ${sizeBytes} ${sha256Of(known)}`);
  const files = [...(await scriptPaths()), '/bin/busybox', import.meta.filename, ...programs];
  for (const file of files) key.update(await fs.readFile(file));
  const directory = join(cacheDirectory, 'guests');
  const path = join(directory, `${key.digest('hex').slice(0, 24)}.raw`);
  if (existsSync(path)) {
    const now = systemClock.now() / 1000;
    await fs.utimes(path, now, now);
    return path;
  }
  await fs.mkdir(directory, { recursive: true });
  await forgetOldTemplates(directory);
  const work = await fs.mkdtemp(join(directory, 'building-'));
  try {
    const disk = join(work, 'disk.raw');
    await buildTemplate(kernel, disk, sizeBytes, { known, programs }, work);
    await fs.rename(disk, path);
  } finally {
    await fs.rm(work, { recursive: true, force: true });
  }
  return path;
}

/** Templates of 30 MiB each that nobody has used for longest; the rest is enough for all tests. */
async function forgetOldTemplates(directory: string): Promise<void> {
  const names = (await fs.readdir(directory)).filter((name) => name.endsWith('.raw'));
  const paths = names.map((name) => join(directory, name));
  const used = await Promise.all(paths.map(async (path) => (await fs.stat(path)).mtimeMs));
  const order = paths.map((path, index) => ({ path, usedMs: used[index] ?? 0 }));
  order.sort((left, right) => right.usedMs - left.usedMs);
  for (const { path } of order.slice(keptTemplates)) await fs.rm(path, { force: true });
}

async function buildTemplate(
  kernel: Kernel,
  disk: string,
  sizeBytes: number,
  content: RootContent,
  work: string,
): Promise<void> {
  await fs.writeFile(disk, '');
  await fs.truncate(disk, sizeBytes);
  const sector = (bytes: number) => bytes / sectorBytes;
  // Types (sfdisk): e is FAT16 with LBA, 83 is Linux; * marks the one to boot.
  const table = `label: dos\n${sector(bootOffset)},${sector(bootBytes)},e,*\n${sector(rootOffset)},,83\n`;
  await run('sfdisk', ['--quiet', disk], { input: table });
  await writeMbrCode(disk);
  await makeBootPartition(kernel, disk, work);
  const root = join(work, 'root');
  await makeRootTree(kernel, root, content);
  await run('mke2fs', [
    ...['-q', '-t', 'ext4', '-L', 'rouse-root', '-m', '0', '-d', root],
    ...['-E', `offset=${rootOffset},lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0`],
    ...[disk, `${(sizeBytes - rootOffset) / 1024}k`],
  ]);
}

/** The code part of the MBR; bytes 440 and up are the disk's id and the partition table. */
async function writeMbrCode(disk: string): Promise<void> {
  const code = await fs.readFile('/usr/lib/SYSLINUX/mbr.bin').catch(() => {
    throw new Error('syslinux-common is missing: run scripts/setup');
  });
  const file = await fs.open(disk, 'r+');
  await file.write(code.subarray(0, 440), 0, 440, 0);
  await file.close();
}

async function makeBootPartition(kernel: Kernel, disk: string, work: string): Promise<void> {
  const initramfs = join(work, 'initrd');
  await fs.writeFile(initramfs, await diskInitramfs(kernel));
  const label = ['-F', '16', '-n', 'BOOT', `--offset=${bootOffset / sectorBytes}`];
  await run('mkfs.vfat', [...label, disk, String(bootBytes / 1024)]);
  await run('mcopy', ['-i', `${disk}@@${bootOffset}`, kernel.image, '::vmlinuz']);
  await run('mcopy', ['-i', `${disk}@@${bootOffset}`, initramfs, '::initrd']);
  await run('syslinux', ['--install', '--offset', String(bootOffset), disk]);
}

async function writeBootConfiguration(disk: string, name: string, beatMs: number): Promise<void> {
  const options = [
    'root=LABEL=rouse-root console=tty0 console=ttyS0,115200 quiet loglevel=4 mitigations=off',
    `random.trust_cpu=on panic=10 rouse.name=${name} rouse.heartbeat=${Math.round(beatMs / 10)}`,
  ].join(' ');
  const lines = ['DEFAULT rouse', 'PROMPT 0', 'TIMEOUT 0', 'LABEL rouse', '  KERNEL /vmlinuz'];
  const text = [...lines, '  INITRD /initrd', `  APPEND ${options}`, ''].join('\n');
  const partition = `${disk}@@${bootOffset}`;
  await run('mcopy', ['-o', '-i', partition, '-', '::syslinux.cfg'], { input: text });
}

async function diskInitramfs(kernel: Kernel): Promise<Buffer> {
  return cpioArchive([
    ...(await busyboxBase()),
    entry.file('init', await fs.readFile(join(scripts, 'init')), 0o755),
    ...(await moduleEntries(kernel, diskModules)),
    entry.directory('root'),
  ]);
}

/** Directories, a console, and busybox: where every initramfs of the lab begins. */
export async function busyboxBase(): Promise<CpioEntry[]> {
  const busybox = await fs.readFile('/bin/busybox').catch(() => {
    throw new Error('busybox-static is missing: run scripts/setup');
  });
  return [
    ...['bin', 'dev', 'proc', 'sys', 'modules'].map(entry.directory),
    entry.characterDevice('dev/console', 5, 1),
    entry.characterDevice('dev/null', 1, 3),
    entry.file('bin/busybox', busybox, 0o755),
    entry.link('bin/sh', 'busybox'),
  ];
}

/** `/modules/*.ko` and `/modules/order`, which names them in the order to load. */
export async function moduleEntries(
  kernel: Kernel,
  wanted: readonly string[],
): Promise<CpioEntry[]> {
  const order = await modulesInOrder(kernel, wanted);
  const files = order.map(async (path) =>
    entry.file(`modules/${basename(path)}`, await fs.readFile(join(kernel.modules, path))),
  );
  const names = order.map((path) => `${basename(path)}\n`).join('');
  return [...(await Promise.all(files)), entry.file('modules/order', Buffer.from(names))];
}

interface RootContent {
  readonly known: Uint8Array;
  readonly programs: readonly string[];
}

async function makeRootTree(kernel: Kernel, root: string, content: RootContent): Promise<void> {
  const directories = [
    'bin',
    'sbin',
    'dev',
    'proc',
    'sys',
    'run',
    'tmp',
    'data',
    'mnt',
    'lib/rouse',
  ];
  for (const path of [...directories, 'etc/rouse', 'usr/bin', 'usr/sbin'])
    await fs.mkdir(join(root, path), { recursive: true });
  await fs.copyFile('/bin/busybox', join(root, 'bin/busybox'));
  for (const name of (await run('/bin/busybox', ['--list'])).trim().split('\n'))
    if (name !== 'busybox') await fs.symlink('/bin/busybox', join(root, 'bin', name));
  await fs.symlink('/bin/busybox', join(root, 'sbin/init'));
  await copyWithLibraries(['/sbin/e2fsck', ...content.programs], root);
  for (const path of await scriptPaths()) {
    const name = basename(path);
    const target = join(root, name === 'inittab' ? 'etc/inittab' : `etc/rouse/${name}`);
    await fs.copyFile(path, target);
    await fs.chmod(target, 0o755);
  }
  const order = await modulesInOrder(kernel, [...systemModules, ...nfsModules]);
  for (const path of order)
    await fs.copyFile(join(kernel.modules, path), join(root, 'lib/rouse', basename(path)));
  const loadedAtBoot = await modulesInOrder(kernel, systemModules);
  await fs.writeFile(
    join(root, 'lib/rouse/order'),
    loadedAtBoot.map((path) => `${basename(path)}\n`).join(''),
  );
  await fs.writeFile(join(root, 'data/known.bin'), content.known);
  await fs.writeFile(join(root, 'data/heartbeat'), `${'0'.padEnd(20)}\n`);
}

async function scriptPaths(): Promise<string[]> {
  return (await fs.readdir(scripts)).sort().map((name) => join(scripts, name));
}

/** Copies programs of this machine below `root`, with every library they are linked with. */
export async function copyWithLibraries(programs: readonly string[], root: string): Promise<void> {
  for (const path of [...programs, ...(await librariesOf(programs))]) {
    const target = join(root, path);
    await fs.mkdir(dirname(target), { recursive: true });
    await fs.copyFile(await fs.realpath(path), target);
    await fs.chmod(target, 0o755);
  }
}
