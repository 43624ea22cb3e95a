import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { startLibvirt } from '#lab/libvirt.ts';
import type { Libvirt } from '#lab/libvirt.ts';
import { openLibvirt } from '#src/hypervisors/libvirt/driver.ts';
import type { LibvirtHypervisor } from '#src/hypervisors/libvirt/driver.ts';
import type { DatastoreSpec } from '#src/hypervisors/port.ts';
import { systemClock } from '#src/lib/clock.ts';
import { runChecked } from '#src/lib/command.ts';
import type { NfsServer } from '#src/nfs/server.ts';
import { MemoryFileSystem } from '#src/testing/memory-file-system.ts';
import { startServer } from './nfs-world.ts';

/** A private libvirt, our NFS server with one export in memory, and the driver between them. */
export interface LibvirtWorld {
  readonly directory: string;
  readonly libvirt: Libvirt;
  readonly nfs: NfsServer;
  readonly files: MemoryFileSystem;
  readonly driver: LibvirtHypervisor;
  readonly hostId: string;
  readonly datastore: DatastoreSpec;
  virsh(...values: string[]): Promise<string>;
  /** Defines a guest whose disk is a file of the production directory, and starts it. */
  startGuest(name: string, format: 'raw' | 'qcow2'): Promise<string>;
  close(): Promise<void>;
}

export async function openLibvirtWorld(): Promise<LibvirtWorld> {
  const directory = await mkdtemp('/tmp/rouse-lv-');
  const libvirt = await startLibvirt({ directory: join(directory, 'l') });
  await mkdir(join(directory, 'production'));
  const files = new MemoryFileSystem({ clock: systemClock, capacityBytes: 64 << 20 });
  files.put('/web01/vda-flat.vmdk', await guestDisk());
  const nfs = await startServer({ mountPort: 20_048 });
  const path = '/default/Recover-test-1';
  const clients = ['127.0.0.1', '::1'];
  nfs.addExport({ id: 1, path, secret: Buffer.alloc(32, 5), clients, fileSystem: files });
  const driver = await openLibvirt({
    uri: libvirt.uri,
    stateDirectory: join(directory, 'state'),
    datastores: [{ name: 'production', path: join(directory, 'production') }],
    acceleration: 'tcg',
    clock: systemClock,
  });
  const hostId = (await driver.inventory()).hosts[0]?.id ?? '';
  const virsh = (...values: string[]) => runChecked('virsh', ['-q', '-c', libvirt.uri, ...values]);
  return {
    directory,
    libvirt,
    nfs,
    files,
    driver,
    hostId,
    datastore: { name: 'rouse-test', server: '127.0.0.1', path, nfsPort: 2049, mountPort: 20_048 },
    virsh,
    startGuest: (name, format) => startGuest(directory, virsh, name, format),
    close: async () => {
      await libvirt.stop();
      await nfs.close();
      await rm(directory, { recursive: true, force: true });
    },
  };
}

async function startGuest(
  directory: string,
  virsh: LibvirtWorld['virsh'],
  name: string,
  format: 'raw' | 'qcow2',
): Promise<string> {
  const raw = join(directory, `${name}.raw`);
  const disk = join(directory, 'production', `${name}.${format}`);
  await writeFile(raw, await guestDisk());
  await runChecked('qemu-img', ['convert', '-f', 'raw', '-O', format, raw, disk]);
  await rm(raw);
  const xml = join(directory, `${name}.xml`);
  await writeFile(xml, guestXml(name, disk, format));
  await virsh('define', xml);
  await virsh('start', name);
  return (await virsh('domuuid', name)).trim();
}

function guestXml(name: string, disk: string, format: string): string {
  return `<domain type='qemu'>
  <name>${name}</name><memory unit='MiB'>16</memory><vcpu>1</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type></os><features><acpi/></features>
  <devices>
    <disk type='file' device='disk'><driver name='qemu' type='${format}'/>
      <source file='${disk}'/><target dev='vda' bus='virtio'/></disk>
    <disk type='file' device='cdrom'><target dev='hdc' bus='ide'/><readonly/></disk>
    <controller type='scsi' model='virtio-scsi'/>
    <interface type='user'><mac address='52:54:00:12:34:56'/><model type='virtio'/></interface>
    <serial type='pty'><target port='0'/></serial>
    <video><model type='vga'/></video>
    <memballoon model='none'/>
  </devices>
</domain>`;
}

export const guestDiskBytes = 8 << 20;

/** Sector 1: how often it booted. Sectors 2 to 63: a count that grows with each tick of the clock (18 a second). */
export async function guestDisk(): Promise<Buffer> {
  const disk = Buffer.alloc(guestDiskBytes);
  Buffer.from(bootSector.join(''), 'hex').copy(disk);
  disk.writeUInt16LE(0xaa55, 510);
  // Something to copy and to compare besides the guest's own sectors.
  for (let at = 1 << 20; at < 2 << 20; at += 4) disk.writeUInt32LE((at * 2654435761) >>> 0, at);
  return disk;
}

export function bootsOf(disk: Buffer): number {
  return disk.readUInt32LE(512);
}

export function writesOf(disk: Buffer): number {
  let most = 0;
  for (let sector = 2; sector < 64; sector += 1) {
    most = Math.max(most, disk.readUInt32LE(sector * 512));
  }
  return most;
}

/** The whole content of a disk image, as a guest sees it. */
export async function imageBytes(directory: string, path: string): Promise<Buffer> {
  const raw = join(directory, 'image.raw');
  await runChecked('qemu-img', ['convert', '-U', '-O', 'raw', path, raw]);
  const bytes = await readFile(raw);
  await rm(raw);
  return bytes;
}

/** The first 64 sectors only, where the guest counts. */
export async function imageHead(directory: string, path: string): Promise<Buffer> {
  const raw = join(directory, 'head.raw');
  const values = ['dd', '-U', '-O', 'raw', 'bs=512', 'count=64', `if=${path}`, `of=${raw}`];
  await runChecked('qemu-img', values);
  const bytes = await readFile(raw);
  await rm(raw);
  return bytes;
}

/**
 * 16-bit code: sets up COM1 (int 14h), reads sector 1 by the packet of int 13h AH=42h, adds one to
 * its first word, writes it back (AH=43h), prints `boot N` on the screen and on COM1; then for
 * ever: adds one to a counter, writes it to sector (counter mod 64) unless that is 0 or 1, and
 * halts until the next tick of the clock (55 ms).
 */
const bootSector = [
  'fa31c08ed88ec08ed0bc007cfbfc8816997cb8e30031d2cd14c706b47c01',
  '00b442e83e0066ff060080b443e83400be9a7ce84700a000800430e84a00',
  'b00ae845006631db664366891e00806689d883e03f83f8027208a3b47cb4',
  '43e80400fbf4ebe230c08a16997cbeac7c53cd135b7201c3bea07ce80300',
  'f4ebfdac08c07405e80300ebf6c350b40e30ff6653cd10665b58b40131d2',
  'cd14c300626f6f7420006469736b206572726f720a001000010000800000',
  '0000000000000000',
];
