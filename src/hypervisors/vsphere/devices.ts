import { RouseError } from '../../errors.ts';
import { vsphereLimits } from './limits.ts';
import type { MachineDetail, MachineDisk } from '../port.ts';
import { at, flagAt, items, numberAt, refAt, textAt } from './vim-xml.ts';
import type { Ref, VimNode } from './vim-xml.ts';

/** VirtualDevice: what a machine's hardware is made of, as we need it. */
export interface Disk {
  readonly key: number;
  /** `scsi0:1`. */
  readonly name: string;
  readonly controllerKey: number;
  readonly unit: number;
  readonly sizeBytes: number;
  readonly file: string;
  readonly datastore: Ref | undefined;
  readonly diskMode: string;
  readonly backingType: string;
  /** VirtualDeviceBackingInfo as it was told. */
  readonly backing: VimNode | undefined;
}

export interface Controller {
  readonly key: number;
  readonly kind: Bus;
  readonly type: string;
  readonly bus: number;
}

type Bus = 'scsi' | 'sata' | 'ide' | 'nvme';

const buses: Readonly<Record<string, Bus>> = {
  VirtualLsiLogicController: 'scsi',
  VirtualLsiLogicSASController: 'scsi',
  VirtualBusLogicController: 'scsi',
  ParaVirtualSCSIController: 'scsi',
  VirtualSCSIController: 'scsi',
  VirtualAHCIController: 'sata',
  VirtualSATAController: 'sata',
  VirtualIDEController: 'ide',
  VirtualNVMEController: 'nvme',
};

/** `ParaVirtualSCSIController` -> `scsi`. */
export function busOf(controllerType: string): Bus | undefined {
  return buses[controllerType];
}

export function controllersOf(devices: VimNode | undefined): readonly Controller[] {
  return items(devices).flatMap((device) => {
    const type = device.type ?? '';
    const kind = buses[type];
    if (kind === undefined) return [];
    const key = numberAt(device, 'key') ?? 0;
    return [{ key, kind, type, bus: numberAt(device, 'busNumber') ?? 0 }];
  });
}

export function disksOf(devices: VimNode | undefined): readonly Disk[] {
  const controllers = controllersOf(devices);
  return items(devices)
    .filter(({ type }) => type === 'VirtualDisk')
    .map((device) => {
      const controllerKey = numberAt(device, 'controllerKey') ?? 0;
      const unit = numberAt(device, 'unitNumber') ?? 0;
      const key = numberAt(device, 'key') ?? 0;
      const on = controllers.find((one) => one.key === controllerKey);
      const backing = at(device, 'backing');
      return {
        key,
        controllerKey,
        unit,
        name: on === undefined ? `disk${key}` : `${on.kind}${on.bus}:${unit}`,
        sizeBytes:
          numberAt(device, 'capacityInBytes') ?? (numberAt(device, 'capacityInKB') ?? 0) * 1024,
        file: textAt(backing, 'fileName') ?? '',
        datastore: refAt(backing, 'datastore'),
        diskMode: textAt(backing, 'diskMode') ?? 'persistent',
        backingType: backing?.type ?? 'VirtualDiskFlatVer2BackingInfo',
        backing,
      };
    });
}

export function machineDisks(devices: VimNode | undefined): readonly MachineDisk[] {
  return disksOf(devices).map(({ name, sizeBytes, file }) => ({
    name,
    sizeBytes,
    format: 'vmdk',
    source: file,
  }));
}

/** Network cards are what has a MAC address. */
export function networksOf(devices: VimNode | undefined, isOn: boolean): MachineDetail['networks'] {
  return items(devices)
    .filter((device) => textAt(device, 'macAddress') !== undefined)
    .map((device) => ({
      mac: (textAt(device, 'macAddress') ?? '').toLowerCase(),
      network:
        textAt(device, 'backing.deviceName') ??
        textAt(device, 'backing.port.portgroupKey') ??
        textAt(device, 'backing.opaqueNetworkId') ??
        '',
      connected: flagAt(device, `connectable.${isOn ? 'connected' : 'startConnected'}`),
    }));
}

/** Where a further disk goes; `add`: a controller has to be made for it. */
export interface Slot {
  readonly controllerKey: number;
  readonly unit: number;
  readonly name: string;
  readonly add?: { readonly type: string; readonly bus: number };
}

/** A new controller's key in a request: negative, as it has none yet. */
const newControllerKey = -1;

/**
 * The first free slot: on SCSI, as guests find disks there while they run; on SATA when there is
 * no SCSI controller; else on a new SCSI controller like the first one.
 */
export function freeSlot(devices: VimNode | undefined): Slot {
  const controllers = controllersOf(devices);
  const taken = new Set(
    items(devices).map(
      (device) => `${numberAt(device, 'controllerKey')}:${numberAt(device, 'unitNumber')}`,
    ),
  );
  const scsi = controllers.filter(({ kind }) => kind === 'scsi');
  const sata = controllers.filter(({ kind }) => kind === 'sata');
  for (const one of scsi.length > 0 ? scsi : sata) {
    const units = one.kind === 'scsi' ? vsphereLimits.scsiUnits : vsphereLimits.sataUnits;
    for (let unit = 0; unit < units; unit += 1) {
      const isOwn = one.kind === 'scsi' && unit === vsphereLimits.scsiOwnUnit;
      if (isOwn || taken.has(`${one.key}:${unit}`)) continue;
      return { controllerKey: one.key, unit, name: `${one.kind}${one.bus}:${unit}` };
    }
  }
  for (let bus = 0; bus < vsphereLimits.controllersMax; bus += 1) {
    if (scsi.some((one) => one.bus === bus)) continue;
    const type = scsi[0]?.type ?? 'VirtualLsiLogicSASController';
    return { controllerKey: newControllerKey, unit: 0, name: `scsi${bus}:0`, add: { type, bus } };
  }
  throw new RouseError('hypervisor-error', 'the machine has no free place for a disk', {
    advice: 'Remove disks from it: four SCSI controllers with 15 disks each are full.',
  });
}
