import { RouseError } from '../../errors.ts';
import { libvirtLimits } from '../../limits.ts';
import { domainDisks } from './domain.ts';
import { attribute, child, childrenNamed, elements } from './xml.ts';
import type { XmlElement } from './xml.ts';

/** Where a running machine takes one more disk. */
export type Slot =
  | {
      readonly bus: 'scsi';
      readonly controller: number;
      /** Of target 0: the only place by which qemu-ga tells SCSI disks apart (qga/commands-linux.c). */
      readonly unit: number;
      /** The controller has to be added first. */
      readonly isNew: boolean;
    }
  /** A PCI place of its own, which libvirt chooses. */
  | { readonly bus: 'virtio' };

/**
 * A free unit on a virtio-scsi controller that is there; else a virtio disk of its own while the
 * machine has such disks and more than one free PCI place; else a new virtio-scsi controller in
 * the last free place, where all further disks find room. Pure.
 */
export function freeSlot(domain: XmlElement): Slot {
  const scsi = controllersOf(domain, 'scsi');
  const virtio = scsi.filter((node) => attribute(node, 'model')?.startsWith('virtio-') === true);
  for (const controller of virtio.map(indexOf).toSorted((left, right) => left - right)) {
    const unit = freeUnit(domain, controller);
    if (unit !== undefined) return { bus: 'scsi', controller, unit, isNew: false };
  }
  const places = freePciPlaces(domain);
  const knowsVirtio = domainDisks(domain).some(({ bus }) => bus === 'virtio');
  if (virtio.length === 0 && knowsVirtio && places > 1) return { bus: 'virtio' };
  if (places > 0) {
    const controller = Math.max(-1, ...scsi.map(indexOf)) + 1;
    return { bus: 'scsi', controller, unit: 0, isNew: true };
  }
  throw new RouseError('hypervisor-unsupported', 'the machine has no place for another disk', {
    advice:
      'Power it off and add a controller: virt-xml NAME --add-device --controller ' +
      'type=scsi,model=virtio-scsi; then try again.',
  });
}

function controllersOf(domain: XmlElement, type: string): XmlElement[] {
  const controllers = childrenNamed(child(domain, 'devices'), 'controller');
  return controllers.filter((node) => attribute(node, 'type') === type);
}

function indexOf(controller: XmlElement): number {
  return Number(attribute(controller, 'index') ?? 0);
}

/** Addresses of everything on a controller: passed-through devices share it with disks. */
export function addressesOn(domain: XmlElement, controller: number): XmlElement[] {
  const addresses = elements(child(domain, 'devices')).flatMap((node) => {
    const address = child(node, 'address');
    const isScsi = attribute(child(node, 'target'), 'bus') === 'scsi' || node.name === 'hostdev';
    return address !== undefined && isScsi ? [address] : [];
  });
  return addresses.filter(
    (address) =>
      attribute(address, 'type') === 'drive' &&
      Number(attribute(address, 'controller') ?? 0) === controller,
  );
}

function freeUnit(domain: XmlElement, controller: number): number | undefined {
  const number = (address: XmlElement, name: string) => Number(attribute(address, name) ?? 0);
  const onTarget = addressesOn(domain, controller).filter((one) => number(one, 'target') === 0);
  const taken = new Set(onTarget.map((address) => number(address, 'unit')));
  for (let unit = 0; unit < libvirtLimits.scsiUnitsMax; unit += 1) {
    if (!taken.has(unit)) return unit;
  }
  return undefined;
}

/** i440fx: slots of bus 0. q35 and virt: root ports with nothing behind them. Else: no bound. */
function freePciPlaces(domain: XmlElement): number {
  const pci = controllersOf(domain, 'pci');
  const models = pci.map((node) => attribute(node, 'model'));
  const addresses = elements(child(domain, 'devices'))
    .map((node) => child(node, 'address'))
    .filter((address) => attribute(address, 'type') === 'pci');
  if (models.includes('pcie-root')) {
    const taken = new Set(addresses.map((address) => Number(attribute(address, 'bus') ?? 0)));
    const ports = pci.filter((node) => attribute(node, 'model') === 'pcie-root-port');
    return ports.filter((port) => !taken.has(indexOf(port))).length;
  }
  if (!models.includes('pci-root')) return Number.POSITIVE_INFINITY;
  const onRoot = addresses.filter((address) => Number(attribute(address, 'bus') ?? 0) === 0);
  const slots = new Set(onRoot.map((address) => Number(attribute(address, 'slot') ?? 0)));
  // Slot 0 is the host bridge, which no address names.
  return libvirtLimits.pciSlotsMax - 1 - slots.size;
}

/** A name that no disk has, running or stored: sda to sdz, then sdaa and on, as Linux counts. */
export function freeName(prefix: 'sd' | 'vd', taken: ReadonlySet<string>): string {
  for (let number = 0; number < libvirtLimits.diskNamesMax; number += 1) {
    const name = `${prefix}${letters(number)}`;
    if (!taken.has(name)) return name;
  }
  throw new RouseError('hypervisor-error', 'the machine has no free disk name');
}

function letters(number: number): string {
  const last = String.fromCharCode(97 + (number % 26));
  return number < 26 ? last : letters(Math.floor(number / 26) - 1) + last;
}
