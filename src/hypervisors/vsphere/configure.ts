import { RouseError, isRouseError } from '../../errors.ts';
import { parseVmx } from '../../formats/vmx.ts';
import type { Vmx } from '../../formats/vmx.ts';
import type { ConfigureSpec, ConfiguredMachine } from '../port.ts';
import { defaultVmx } from './default-vmx.ts';
import { descriptorOf, markKeys } from './names.ts';

/**
 * Step 9: the saved .vmx, made fit for its new place. Pure: what stood in it and is not named here
 * stays as it was.
 */
export function configureVmx(spec: ConfigureSpec): ConfiguredMachine {
  if (spec.disks.some((disk) => disk.local !== undefined)) throw noFullRestore();
  const changes: string[] = [];
  const say = (change: string) => void changes.push(change);
  const vmx = startingPoint(spec, say);
  if (vmx.get('displayName') !== spec.name) say(`the name is ${spec.name}`);
  vmx.set('displayName', spec.name);
  forgetOldPlace(vmx);
  setIdentity(vmx, spec, say);
  setDisks(vmx, spec, say);
  emptyDrives(vmx, say);
  leaveHostDevices(vmx, say);
  setNetworks(vmx, spec, say);
  const nvram = setFirmware(vmx, spec, say);
  vmx.set(markKeys.mark, spec.mark);
  vmx.set(markKeys.datastore, spec.datastore.name);
  vmx.set(markKeys.uuid, dashed(vmx.get('uuid.bios') ?? '') ?? spec.identity.uuid);
  if (spec.disks.length > 0) say(`disks lie on ${spec.datastore.name}`);
  return {
    fileName: `${spec.folder}.vmx`,
    text: vmx.toString(),
    changes,
    // vCenters look for both beside a .vmx that they are to register.
    extraFiles: [nvram, { name: 'vmware.log' }],
  };
}

type Say = (change: string) => void;

export function noFullRestore(): RouseError {
  return new RouseError(
    'hypervisor-unsupported',
    'disks are not written straight to a datastore of vSphere',
    { advice: 'Recover with --mode instant, and relocate to that datastore: --relocate-to NAME.' },
  );
}

function startingPoint(spec: ConfigureSpec, say: Say): Vmx {
  const where = `the saved configuration of ${spec.name}`;
  const saved = spec.configuration;
  if (saved !== undefined && !/^\s*[<{]/u.test(saved)) {
    try {
      return parseVmx(saved, where);
    } catch (error) {
      if (!isRouseError(error)) throw error;
      say(`${error.message}: a machine is made anew`);
      return parseVmx(defaultVmx(spec, undefined, say), where);
    }
  }
  return parseVmx(defaultVmx(spec, saved, say), where);
}

/** What was true of the host and the datastore that the machine came from. */
function forgetOldPlace(vmx: Vmx): void {
  const places = [
    'sched.swap.derivedname',
    'sched.swap.dir',
    'migrate.hostlog',
    'migrate.hostlogstate',
  ];
  for (const key of [...places, 'migrate.migrationid', 'vmxstats.filename', 'workingdir']) {
    vmx.remove(key);
  }
  vmx.remove('filesearchpath');
  vmx.remove(/^checkpoint\./u);
  vmx.remove(/^sched\.swap\./u);
  vmx.remove(/^snapshot\.(?:maxsnapshots|redonotwithparent|directory|alwayspoweroff)$/u);
  vmx.remove('snapshot.directory');
  // Change tracking would write its maps into the clone.
  vmx.remove(/^(?:(?:scsi|sata|ide|nvme)\d+:\d+\.)?ctkenabled$/u);
  vmx.remove(/changetrackpath/u);
  vmx.remove(/^rouse\./u);
  for (const key of vmx.keys()) {
    if (/\.lck(?:-|$|\/)/u.test(vmx.get(key) ?? '') || key.toLowerCase().startsWith('.lck-')) {
      vmx.remove(key);
    }
  }
}

function setIdentity(vmx: Vmx, spec: ConfigureSpec, say: Say): void {
  const { keep, uuid } = spec.identity;
  const isKept = keep && dashed(vmx.get('uuid.bios') ?? '') !== undefined;
  if (!isKept) {
    vmx.set('uuid.bios', vmwareUuid(uuid));
    say(`the UUID is ${uuid}`);
  }
  if (!keep) {
    // vCenter gives a new one; the generation id is new, so the guest learns that it is a copy.
    vmx.remove('vc.uuid');
    vmx.remove(/^vm\.genidx?$/u);
  }
  vmx.remove('uuid.location');
  // The identity is as it was asked for: nobody needs to be asked "moved or copied?".
  vmx.set('uuid.action', 'keep');
}

/** `564d…-…` as a .vmx spells it: `56 4d … xx-xx …`. */
export function vmwareUuid(uuid: string): string {
  const pairs = uuid.replaceAll('-', '').toLowerCase().match(/../gu) ?? [];
  return `${pairs.slice(0, 8).join(' ')}-${pairs.slice(8).join(' ')}`;
}

/** A .vmx's UUID in the usual form; undefined when it is none. */
export function dashed(value: string): string | undefined {
  const hex = value.replaceAll(/[\s-]/gu, '').toLowerCase();
  const match = /^([0-9a-f]{8})([0-9a-f]{4})([0-9a-f]{4})([0-9a-f]{4})([0-9a-f]{12})$/u.exec(hex);
  return match?.slice(1).join('-');
}

const slotPattern = /^((?:scsi|sata|ide|nvme)\d+:\d+)\./u;

/** Slots of hard disks, in the order in which they stand. */
export function diskSlots(vmx: Vmx): string[] {
  const slots = new Set<string>();
  for (const key of vmx.keys()) {
    const slot = slotPattern.exec(key.toLowerCase())?.[1];
    if (slot !== undefined && isPresent(vmx, slot) && !isDrive(vmx, slot)) slots.add(slot);
  }
  return [...slots];
}

function isPresent(vmx: Vmx, device: string): boolean {
  return (vmx.get(`${device}.present`) ?? 'FALSE').toUpperCase() === 'TRUE';
}

/** CD and DVD drives: by their type, or by the image in them. */
function isDrive(vmx: Vmx, slot: string): boolean {
  const type = (vmx.get(`${slot}.deviceType`) ?? '').toLowerCase();
  const file = (vmx.get(`${slot}.fileName`) ?? '').toLowerCase();
  return type.includes('cdrom') || file.endsWith('.iso');
}

type WantedDisk = ConfigureSpec['disks'][number];

/** By their slot where names are slots; the rest in order; what is left over on free slots. */
function setDisks(vmx: Vmx, spec: ConfigureSpec, say: Say): void {
  const slots = diskSlots(vmx);
  const placed = new Map<string, WantedDisk>();
  for (const disk of spec.disks) {
    const slot = slots.find((one) => one === disk.name.toLowerCase());
    if (slot !== undefined) placed.set(slot, disk);
  }
  const rest = spec.disks.filter((disk) => ![...placed.values()].includes(disk));
  const free = slots.filter((slot) => !placed.has(slot));
  for (const slot of free) {
    const disk = rest.shift();
    if (disk !== undefined) placed.set(slot, disk);
  }
  for (const slot of slots.filter((one) => !placed.has(one))) {
    vmx.remove(new RegExp(`^${slot}\\.`, 'u'));
    say(`disk ${slot} is left out: it is not part of the backup`);
  }
  for (const disk of rest) {
    const slot = newSlot(vmx);
    placed.set(slot, disk);
    say(`disk ${disk.name} is added as ${slot}`);
  }
  for (const [slot, disk] of placed) placeDisk(vmx, slot, disk);
}

function placeDisk(vmx: Vmx, slot: string, disk: WantedDisk): void {
  const controller = slot.replace(/:.*$/u, '');
  if (!isPresent(vmx, controller) && !controller.startsWith('ide')) {
    vmx.set(`${controller}.present`, 'TRUE');
  }
  vmx.set(`${slot}.present`, 'TRUE');
  const known = { scsi: 'scsi-hardDisk', ide: 'ata-hardDisk', sata: 'disk', nvme: 'disk' };
  const bus = controller.replace(/\d+$/u, '') as keyof typeof known;
  // Raw devices of the old host become plain disks.
  vmx.set(`${slot}.deviceType`, known[bus]);
  vmx.set(`${slot}.fileName`, descriptorOf(disk.file));
  vmx.remove(`${slot}.redo`);
  // Nonpersistent and undoable disks would lose what is written; shared ones are shared no more.
  vmx.remove(`${slot}.mode`);
  vmx.remove(`${slot}.sharing`);
  vmx.remove(`${slot}.writethrough`);
}

/** On the first SCSI controller, or on SATA, which every firmware and guest knows. */
function newSlot(vmx: Vmx): string {
  const scsi = [0, 1, 2, 3].filter((bus) => isPresent(vmx, `scsi${bus}`));
  for (const bus of scsi) {
    for (let unit = 0; unit < 16; unit += 1) {
      if (unit !== 7 && !isPresent(vmx, `scsi${bus}:${unit}`))
        return reserved(vmx, `scsi${bus}:${unit}`);
    }
  }
  for (let bus = 0; bus < 4; bus += 1) {
    for (let unit = 0; unit < 30; unit += 1) {
      if (!isPresent(vmx, `sata${bus}:${unit}`)) return reserved(vmx, `sata${bus}:${unit}`);
    }
  }
  throw new RouseError('hypervisor-error', 'the machine has no free place for another disk');
}

function reserved(vmx: Vmx, slot: string): string {
  vmx.set(`${slot}.present`, 'TRUE');
  return slot;
}

/** An image or a drive of the old host would keep the machine from starting. */
function emptyDrives(vmx: Vmx, say: Say): void {
  const slots = new Set(
    vmx.keys().flatMap((key) => slotPattern.exec(key.toLowerCase())?.[1] ?? []),
  );
  for (const slot of slots) {
    if (!isPresent(vmx, slot) || !isDrive(vmx, slot)) continue;
    const file = vmx.get(`${slot}.fileName`) ?? '';
    if (file.includes('/') || file.toLowerCase().endsWith('.iso')) {
      say(`the drive ${slot} is empty: ${file} is not here`);
    }
    vmx.set(`${slot}.deviceType`, 'atapi-cdrom');
    vmx.set(`${slot}.clientDevice`, 'TRUE');
    vmx.set(`${slot}.fileName`, 'emptyBackingString');
    vmx.set(`${slot}.startConnected`, 'FALSE');
    vmx.remove(`${slot}.autodetect`);
  }
  for (const drive of ['floppy0', 'floppy1']) {
    if (!isPresent(vmx, drive)) continue;
    vmx.set(`${drive}.clientDevice`, 'TRUE');
    vmx.set(`${drive}.startConnected`, 'FALSE');
    vmx.remove(`${drive}.filename`);
    vmx.remove(`${drive}.filetype`);
  }
}

/** Ports into files and devices of the old host, and what was passed through from it. */
function leaveHostDevices(vmx: Vmx, say: Say): void {
  const found = vmx.keys().flatMap((key) => {
    const match = /^((?:serial|parallel|pcipassthru|vgpu|usb:)\d+)\./iu.exec(key);
    return match?.[1] === undefined ? [] : [match[1].toLowerCase()];
  });
  for (const device of new Set(found)) {
    if (isPresent(vmx, device)) say(`${device} is left out: it belongs to the old host`);
    vmx.remove(new RegExp(`^${device}\\.`, 'u'));
  }
}

function setNetworks(vmx: Vmx, spec: ConfigureSpec, say: Say): void {
  const names = new Set(
    vmx.keys().flatMap((key) => /^(ethernet\d+)\./u.exec(key.toLowerCase())?.[1] ?? []),
  );
  const cards = [...names]
    .filter((card) => isPresent(vmx, card))
    .sort((a, b) => Number(a.slice(8)) - Number(b.slice(8)));
  for (const [index, card] of cards.entries()) {
    if (!spec.identity.keep) setAddress(vmx, card, spec.identity.macs[index]);
    vmx.set(`${card}.startConnected`, spec.connectNetworks ? 'TRUE' : 'FALSE');
    vmx.remove(`${card}.connected`);
    if (spec.connectNetworks) continue;
    // A port of a distributed switch may be in use by the original.
    vmx.remove(new RegExp(`^${card}\\.dvs\\.`, 'u'));
    vmx.remove(new RegExp(`^${card}\\.opaquenetwork\\.`, 'u'));
    vmx.remove(`${card}.externalid`);
    if (vmx.get(`${card}.networkName`) === undefined) vmx.set(`${card}.networkName`, 'VM Network');
  }
  if (cards.length === 0) return;
  if (!spec.identity.keep) say('network cards have new addresses');
  if (!spec.connectNetworks) say('network cards are unplugged');
}

/**
 * ESXi takes addresses given by hand from 00:50:56:00:00:00 to 00:50:56:3F:FF:FF alone: the last
 * three bytes are those that were asked for, made to fit.
 */
function setAddress(vmx: Vmx, card: string, mac: string | undefined): void {
  const hadOptions = ['generatedaddress', 'generatedaddressoffset', 'checkmacaddress', 'address'];
  for (const key of hadOptions) vmx.remove(`${card}.${key}`);
  if (mac === undefined) {
    vmx.set(`${card}.addressType`, 'generated');
    return;
  }
  const [high = '0', ...low] = mac.split(':').slice(3);
  const first = (parseInt(high, 16) & 0x3f).toString(16).padStart(2, '0');
  vmx.set(`${card}.addressType`, 'static');
  vmx.set(`${card}.address`, ['00:50:56', first, ...low].join(':').toLowerCase());
}

/**
 * The saved variables lie in the clone under another name. Without them ESXi makes its own under
 * a name that nothing has yet; the empty file beside is for those who only look whether it is there.
 */
function setFirmware(vmx: Vmx, spec: ConfigureSpec, say: Say) {
  const name = `${spec.name}.nvram`;
  if (spec.nvram !== undefined) {
    vmx.set('nvram', name);
    say('the firmware has its saved variables');
    return { name, copyOf: spec.nvram };
  }
  vmx.set('nvram', `${spec.folder}-fresh.nvram`);
  return { name };
}
