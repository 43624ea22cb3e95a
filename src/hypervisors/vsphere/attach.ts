import { RouseError, isRouseError } from '../../errors.ts';
import type { AttachSpec, GuestDisk } from '../port.ts';
import type { VimClient } from './client.ts';
import { mountedOn } from './datastores.ts';
import { disksOf, freeSlot } from './devices.ts';
import type { Slot } from './devices.ts';
import { machineRef } from './inventory.ts';
import { devicesOf } from './machines.ts';
import { datastorePath, descriptorOf, entityName } from './names.ts';
import { readOne } from './properties.ts';
import type { Found } from './properties.ts';
import { runTask } from './tasks.ts';
import { all, leaf, node, numberAt, refOf, reference, textAt } from './vim-xml.ts';
import type { Ref } from './vim-xml.ts';

const attachPaths = ['name', 'config.hardware', 'runtime.host'] as const;

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
      node(
        'device',
        [
          leaf('key', slot.controllerKey),
          leaf('busNumber', slot.add.bus),
          leaf('sharedBus', 'noSharing'),
        ],
        slot.add.type,
      ),
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
  ]);
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

/** No error when it is gone. The file stays: `fileOperation` is not said. */
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
  const remove = node('spec', [
    node('deviceChange', [
      leaf('operation', 'remove'),
      node(
        'device',
        [
          leaf('key', disk.key),
          backing(disk.file, disk.datastore, disk.diskMode),
          leaf('controllerKey', disk.controllerKey),
          leaf('unitNumber', disk.unit),
          leaf('capacityInKB', Math.ceil(disk.sizeBytes / 1024)),
        ],
        'VirtualDisk',
      ),
    ]),
  ]);
  const what = `detaching ${device} from ${entityName(found.text('name'))}`;
  await runTask(client, 'ReconfigVM_Task', found.ref, [remove], { what });
}

/** VMware Tools tell file systems by their disk since 7.0 (GuestInfo.disk[].mappings). */
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
  return [...mounts].map(([name, paths]) => ({ name, seenAs: name, mounts: paths }));
}
