import { RouseError, isRouseError } from '../../errors.ts';
import type { AttachSpec, GuestDisk } from '../port.ts';
import type { VimClient } from './client.ts';
import { mountedOn } from './datastores.ts';
import { controllersOf, disksOf, freeSlot } from './devices.ts';
import type { Controller, Disk, Slot } from './devices.ts';
import { isFault } from './faults.ts';
import { machineRef } from './inventory.ts';
import { devicesOf, extraValue } from './machines.ts';
import { datastorePath, descriptorOf, entityName } from './names.ts';
import { readOne } from './properties.ts';
import type { Found } from './properties.ts';
import { runTask } from './tasks.ts';
import {
  all,
  items,
  leaf,
  node,
  numberAt,
  refOf,
  reference,
  textAt,
  textValue,
} from './vim-xml.ts';
import type { Ref } from './vim-xml.ts';

const attachPaths = ['name', 'config.hardware', 'config.extraConfig', 'runtime.host'] as const;

/** In extraConfig of the target: this controller was added for a disk of ours, and goes with it. */
const controllerMark = (bus: number) => `rouse.controller.scsi${bus}`;

/** Step 9 of FLR: the clone's disk becomes a disk of the machine; found again by its file. */
export async function attachDisk(client: VimClient, id: string, spec: AttachSpec): Promise<string> {
  const found = await readOne(client, machineRef(id), attachPaths);
  const file = datastorePath(spec.datastore.name, descriptorOf(spec.path));
  const there = disksOf(devicesOf(found)).find((disk) => disk.file === file);
  if (there !== undefined) return there.name;
  const host = refOf(found.get('runtime.host'));
  if (host === undefined) {
    throw new RouseError('wrong-state', `${entityName(found.text('name'))} is on no host`);
  }
  const { ref: datastore } = await mountedOn(client, host, spec.datastore.name);
  const slot = freeSlot(devicesOf(found));
  const what = `attaching ${file} to ${entityName(found.text('name'))}`;
  await runTask(client, 'ReconfigVM_Task', found.ref, [attachConfig(spec, file, datastore, slot)], {
    what,
  });
  // The manager may have chosen another place than the one it was asked for.
  const now = disksOf(devicesOf(await readOne(client, found.ref, attachPaths)));
  return now.find((disk) => disk.file === file)?.name ?? slot.name;
}

/**
 * VirtualDevice's fields come first, in schema order. Independent, so that a snapshot which
 * somebody takes of the machine does not take the clone's disk along; persistent on the clone.
 */
function attachConfig(spec: AttachSpec, file: string, datastore: Ref, slot: Slot) {
  const controller = slot.add && [
    node('deviceChange', [
      leaf('operation', 'add'),
      controllerDevice({ key: slot.controllerKey, ...slot.add }),
    ]),
  ];
  return node('spec', [
    ...(controller ?? []),
    node('deviceChange', [
      leaf('operation', 'add'),
      node(
        'device',
        [
          leaf('key', newDiskKey),
          backing(file, datastore, 'independent_persistent'),
          leaf('controllerKey', slot.controllerKey),
          leaf('unitNumber', slot.unit),
          leaf('capacityInKB', Math.ceil(spec.sizeBytes / 1024)),
        ],
        'VirtualDisk',
      ),
    ]),
    ...(slot.add === undefined ? [] : [extraConfig(controllerMark(slot.add.bus), 'added')]),
  ]);
}

/** An empty value takes the key away. */
function extraConfig(key: string, value: string) {
  return node('extraConfig', [leaf('key', key), textValue('value', value)], 'OptionValue');
}

/** A new device's key in a request: negative, as it has none yet. */
const newDiskKey = -101;

function backing(file: string, datastore: Ref | undefined, diskMode: string) {
  return node(
    'backing',
    [leaf('fileName', file), reference('datastore', datastore), leaf('diskMode', diskMode)],
    'VirtualDiskFlatVer2BackingInfo',
  );
}

/**
 * No error when it is gone. The file stays: `fileOperation` is not said. A controller that we added
 * goes with the last disk on it, unless the guest does not let go of it.
 */
export async function detachDisk(client: VimClient, id: string, device: string): Promise<void> {
  let found: Found;
  try {
    found = await readOne(client, machineRef(id), attachPaths);
  } catch (error) {
    if (isRouseError(error, 'not-found')) return;
    throw error;
  }
  const disk = disksOf(devicesOf(found)).find((one) => one.name === device);
  if (disk === undefined) return;
  const what = `detaching ${device} from ${entityName(found.text('name'))}`;
  const controller = ownController(found, disk);
  if (controller !== undefined) {
    const both = node('spec', [
      removal(disk),
      node('deviceChange', [leaf('operation', 'remove'), controllerDevice(controller)]),
      extraConfig(controllerMark(controller.bus), ''),
    ]);
    try {
      await runTask(client, 'ReconfigVM_Task', found.ref, [both], { what });
      return;
    } catch (error) {
      if (!isFault(error, ...controllerStays)) throw error;
    }
  }
  const spec = node('spec', [removal(disk)]);
  await runTask(client, 'ReconfigVM_Task', found.ref, [spec], { what });
}

/** Some guests do not let go of a controller while they run: it stays, empty and marked. */
const controllerStays = ['InvalidDeviceOperation', 'InvalidDeviceSpec', 'GenericVmConfigFault'];

/** What we added for the disk, if nothing else is on it. */
function ownController(found: Found, disk: Disk): Controller | undefined {
  const devices = devicesOf(found);
  const on = items(devices).filter((one) => numberAt(one, 'controllerKey') === disk.controllerKey);
  if (on.length !== 1) return undefined;
  return controllersOf(devices).find(
    ({ key, bus }) =>
      key === disk.controllerKey && extraValue(found, controllerMark(bus)) === 'added',
  );
}

function controllerDevice({ key, bus, type }: Omit<Controller, 'kind'>) {
  const parts = [leaf('key', key), leaf('busNumber', bus), leaf('sharedBus', 'noSharing')];
  return node('device', parts, type);
}

function removal(disk: Disk) {
  const device = [
    leaf('key', disk.key),
    backing(disk.file, disk.datastore, disk.diskMode),
    leaf('controllerKey', disk.controllerKey),
    leaf('unitNumber', disk.unit),
    leaf('capacityInKB', Math.ceil(disk.sizeBytes / 1024)),
  ];
  return node('deviceChange', [leaf('operation', 'remove'), node('device', device, 'VirtualDisk')]);
}

/**
 * VMware Tools tell mounted file systems by their disk since 7.0 (GuestInfo.disk[].mappings): a disk
 * that they do not name has none mounted, whether the guest sees it or not. Older ones name none.
 */
export async function guestDisks(
  client: VimClient,
  id: string,
): Promise<readonly GuestDisk[] | undefined> {
  const found = await readOne(client, machineRef(id), [
    'config.hardware',
    'guest.toolsRunningStatus',
    'guest.disk',
  ]);
  if (found.text('guest.toolsRunningStatus') !== 'guestToolsRunning') return undefined;
  const disks = disksOf(devicesOf(found));
  const mounts = new Map<string, string[]>();
  for (const volume of found.get('guest.disk')?.children ?? []) {
    for (const mapping of all(volume, 'mappings')) {
      const name = disks.find(({ key }) => key === numberAt(mapping, 'key'))?.name;
      const path = textAt(volume, 'diskPath') ?? '';
      if (name !== undefined) mounts.set(name, [...(mounts.get(name) ?? []), path]);
    }
  }
  if (mounts.size === 0) return undefined;
  return disks.map(({ name }) => ({ name, seenAs: null, mounts: mounts.get(name) ?? [] }));
}
