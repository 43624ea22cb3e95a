import { RouseError, isRouseError } from '../../errors.ts';
import { libvirtLimits } from '../../limits.ts';
import type { AttachSpec } from '../port.ts';
import { diskSource } from './configure.ts';
import { domainXml, placeOf } from './context.ts';
import type { LibvirtContext } from './context.ts';
import { domainDisks } from './domain.ts';
import type { DomainDisk } from './domain.ts';
import { listMachines, powerState } from './machines.ts';
import { addressesOn, freeName, freeSlot } from './slots.ts';
import type { Slot } from './slots.ts';
import { attribute, child, childrenNamed, element, writeXml } from './xml.ts';
import type { XmlElement } from './xml.ts';

/**
 * Disks that come and go while a machine runs. They are part of what runs, never of what would
 * start next: a machine that was powered off and on again comes up without them.
 */

/** A new disk for the guest; found again by its source. */
export async function attachDisk(
  context: LibvirtContext,
  machine: string,
  spec: AttachSpec,
): Promise<string> {
  const domain = await domainXml(context, machine);
  const place = placeOf(context, spec.datastore);
  const source = diskSource(spec.datastore, spec.path, place.mountPath);
  const there = domainDisks(domain).find((disk) => disk.source === sourceText(source));
  if (there !== undefined) return there.name;
  if ((await powerState(context, machine)) === 'off') {
    throw new RouseError('wrong-state', `the machine ${machine} is powered off`, {
      advice: 'Power it on: disks are attached to what runs.',
    });
  }
  const slot = freeSlot(domain);
  if (slot.bus === 'scsi' && slot.isNew) {
    await attachDevice(context, machine, controllerNode(slot.controller, spec.datastore.name));
  }
  const stored = domainDisks(await domainXml(context, machine, '--inactive'));
  const taken = new Set([...domainDisks(domain), ...stored].map((disk) => disk.name));
  const name = freeName(slot.bus === 'scsi' ? 'sd' : 'vd', taken);
  await attachDevice(context, machine, diskNode(name, slot, source, spec.serial));
  return name;
}

function sourceText(source: XmlElement): string {
  const disk = element('disk', {}, [source]);
  const devices = element('devices', {}, [disk]);
  return domainDisks(element('domain', {}, [devices]))[0]?.source ?? '';
}

/**
 * Whether a disk was attached by us: then it belongs to a backup, and not to the machine that sees
 * it for a while.
 */
export function isAttached({ node }: DomainDisk): boolean {
  return aliasOf(node) !== undefined;
}

/** The alias proves later that it is ours; libvirt keeps aliases that begin with `ua-`. */
function controllerNode(index: number, datastore: string): XmlElement {
  return element('controller', { type: 'scsi', index: String(index), model: 'virtio-scsi' }, [
    element('alias', { name: controllerAlias(datastore) }),
  ]);
}

const aliasPrefix = 'ua-rouse-';

function controllerAlias(datastore: string): string {
  return aliasFor(datastore);
}

function aliasFor(name: string): string {
  return `${aliasPrefix}${name.replaceAll(/[^\w-]/gu, '_')}`;
}

function diskNode(name: string, slot: Slot, source: XmlElement, serial: string): XmlElement {
  const address =
    slot.bus === 'virtio'
      ? []
      : [
          element('address', {
            type: 'drive',
            controller: String(slot.controller),
            bus: '0',
            target: '0',
            unit: String(slot.unit),
          }),
        ];
  const type = attribute(source, 'file') === undefined ? 'network' : 'file';
  return element('disk', { type, device: 'disk' }, [
    // The guest is a production machine: what is wrong with this disk must never pause it.
    element('driver', { name: 'qemu', type: 'raw', error_policy: 'report', discard: 'unmap' }),
    source,
    element('target', { dev: name, bus: slot.bus }),
    // QEMU cuts a virtio-blk serial at 20 characters (virtio 1.2, 5.2.6).
    element('serial', {}, [serial.slice(0, 20)]),
    element('alias', { name: aliasFor(serial) }),
    ...address,
  ]);
}

async function attachDevice(
  context: LibvirtContext,
  machine: string,
  node: XmlElement,
): Promise<void> {
  await context.virsh.withXml([writeXml(node)], (file = '') => [
    'attach-device',
    ...['--domain', machine, '--file', file, '--live'],
  ]);
}

/** Resolves when the guest has let go; a guest that mounts the disk can refuse. */
export async function detachDisk(
  context: LibvirtContext,
  machine: string,
  device: string,
): Promise<void> {
  const controller = await controllerOf(context, machine, device);
  const steps = Math.ceil(libvirtLimits.detachMsMax / libvirtLimits.powerPollMs);
  for (let step = 0; step < steps; step += 1) {
    const scopes = await scopesWith(context, machine, device);
    if (scopes.length === 0) {
      if (controller !== undefined) await dropController(context, machine, controller);
      return;
    }
    // Asked again every few seconds: a guest that was still booting ignores the first time.
    if (step % 20 === 0) {
      for (const scope of scopes) {
        const values = ['detach-disk', '--domain', machine, '--target', device, scope];
        await context.virsh.runUnless(/not found|already in the process of unplug/u, values);
      }
    }
    await context.clock.sleep(libvirtLimits.powerPollMs);
  }
  throw new RouseError('time-out', `the guest of ${machine} does not let go of disk ${device}`, {
    advice: 'Unmount it in the guest, or power the machine off.',
  });
}

async function scopesWith(
  context: LibvirtContext,
  machine: string,
  device: string,
): Promise<readonly string[]> {
  try {
    const has = (domain: XmlElement) => domainDisks(domain).some((disk) => disk.name === device);
    const isOn = (await powerState(context, machine)) !== 'off';
    const scopes = isOn && has(await domainXml(context, machine)) ? ['--live'] : [];
    const stored = has(await domainXml(context, machine, '--inactive'));
    return stored ? [...scopes, '--config'] : scopes;
  } catch (error) {
    if (isRouseError(error, 'not-found')) return [];
    throw error;
  }
}

/** The index of the controller that a SCSI disk hangs on. */
async function controllerOf(
  context: LibvirtContext,
  machine: string,
  device: string,
): Promise<number | undefined> {
  try {
    const disks = domainDisks(await domainXml(context, machine));
    const disk = disks.find(({ name }) => name === device);
    return disk?.bus === 'scsi' ? controllerIndex(disk) : undefined;
  } catch (error) {
    if (isRouseError(error, 'not-found')) return undefined;
    throw error;
  }
}

function controllerIndex(disk: DomainDisk): number {
  return Number(attribute(child(disk.node, 'address'), 'controller') ?? 0);
}

/** One that attachDisk added goes with the last disk on it; anybody else's stays. */
async function dropController(
  context: LibvirtContext,
  machine: string,
  index: number,
): Promise<void> {
  try {
    const domain = await domainXml(context, machine);
    const controller = scsiControllers(domain).find(
      (node) => Number(attribute(node, 'index') ?? 0) === index && aliasOf(node) !== undefined,
    );
    if (controller === undefined || addressesOn(domain, index).length > 0) return;
    await context.virsh.withXml([writeXml(controller)], (file = '') => [
      'detach-device',
      ...['--domain', machine, '--file', file, '--live'],
    ]);
  } catch (error) {
    // Powered off or undefined meanwhile: it is gone with what ran.
    if (isRouseError(error, 'not-found')) return;
    if (isRouseError(error) && /not running|not found/u.test(error.message)) return;
    throw error;
  }
}

/** A kill between controller and disk leaves an empty one, named after the datastore. */
export async function dropEmptyController(
  context: LibvirtContext,
  datastore: string,
): Promise<void> {
  for (const { id, power } of await listMachines(context, '')) {
    if (power === 'off') continue;
    const domain = await domainXml(context, id).catch((error: unknown) => {
      if (isRouseError(error, 'not-found')) return undefined;
      throw error;
    });
    if (domain === undefined) continue;
    const ours = scsiControllers(domain).find(
      (node) => aliasOf(node) === controllerAlias(datastore),
    );
    if (ours !== undefined) {
      await dropController(context, id, Number(attribute(ours, 'index') ?? 0));
    }
  }
}

function scsiControllers(domain: XmlElement): XmlElement[] {
  const controllers = childrenNamed(child(domain, 'devices'), 'controller');
  return controllers.filter((node) => attribute(node, 'type') === 'scsi');
}

/** The alias of a device that we attached. */
function aliasOf(device: XmlElement): string | undefined {
  const alias = attribute(child(device, 'alias'), 'name');
  return alias?.startsWith(aliasPrefix) === true ? alias : undefined;
}
