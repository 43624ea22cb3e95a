import * as z from 'zod';
import { isRouseError } from '../../errors.ts';
import { libvirtLimits } from '../../limits.ts';
import type { GuestDisk } from '../port.ts';
import { domainXml } from './context.ts';
import type { LibvirtContext } from './context.ts';
import { domainDisks } from './domain.ts';
import type { DomainDisk } from './domain.ts';
import { attribute, child, childrenNamed } from './xml.ts';
import type { XmlElement } from './xml.ts';

/**
 * The QEMU guest agent, as far as disks go (qapi/qga: guest-get-disks since 5.2,
 * guest-get-fsinfo). What a guest says is not trusted: any other shape counts as no answer.
 */
const address = z.object({
  serial: z.string().optional(),
  'bus-type': z.string().optional(),
  bus: z.number().optional(),
  target: z.number().optional(),
  unit: z.number().optional(),
  'pci-controller': z
    .object({ domain: z.number(), bus: z.number(), slot: z.number(), function: z.number() })
    .optional(),
});
type Address = z.infer<typeof address>;

const disksAnswer = z.object({
  return: z
    .array(z.object({ name: z.string(), partition: z.boolean(), address: address.optional() }))
    .max(libvirtLimits.guestDisksMax),
});

const fileSystemsAnswer = z.object({
  return: z
    .array(z.object({ mountpoint: z.string(), disk: z.array(address).default([]) }))
    .max(libvirtLimits.guestDisksMax),
});

/** Undefined: no agent answers, or not what an agent says. */
export async function guestDisks(
  context: LibvirtContext,
  machine: string,
): Promise<readonly GuestDisk[] | undefined> {
  const disks = await ask(context, machine, 'guest-get-disks');
  if (disks === undefined) return undefined;
  const fileSystems = await ask(context, machine, 'guest-get-fsinfo');
  return matchGuestDisks(await domainXml(context, machine), disks, fileSystems ?? '');
}

async function ask(
  context: LibvirtContext,
  machine: string,
  command: string,
): Promise<string | undefined> {
  const seconds = String(libvirtLimits.agentSeconds);
  const document = JSON.stringify({ execute: command });
  try {
    return await context.virsh.run([
      'qemu-agent-command',
      ...['--domain', machine, '--timeout', seconds, '--cmd', document],
    ]);
  } catch (error) {
    // Not configured, not connected, hung, too old, or powered off: each is no answer.
    if (isRouseError(error) && error.code !== 'hypervisor-unreachable') return undefined;
    throw error;
  }
}

/** Pure: the machine's disks that the guest's answers name, by serial or by place on the bus. */
export function matchGuestDisks(
  domain: XmlElement,
  disksSaid: string,
  fileSystemsSaid: string,
): readonly GuestDisk[] | undefined {
  const seen = disksAnswer.safeParse(jsonOrUndefined(disksSaid));
  if (!seen.success) return undefined;
  const mounted = fileSystemsAnswer.safeParse(jsonOrUndefined(fileSystemsSaid));
  const whole = seen.data.return.filter((one) => !one.partition);
  return domainDisks(domain).flatMap((disk) => {
    const place = placeOn(domain, disk);
    const isSame = (said: Address | undefined) => said !== undefined && fits(disk, place, said);
    const found = whole.find((one) => isSame(one.address));
    if (found === undefined) return [];
    const systems = mounted.success ? mounted.data.return : [];
    const mounts = systems.filter((one) => one.disk.some(isSame));
    return [{ name: disk.name, seenAs: found.name, mounts: mounts.map((one) => one.mountpoint) }];
  });
}

interface Place {
  readonly bus: string;
  /** The disk's own PCI address, or its controller's. */
  readonly pci: XmlElement | undefined;
  readonly unit: number;
}

function placeOn(domain: XmlElement, disk: DomainDisk): Place {
  const address = child(disk.node, 'address');
  if (attribute(address, 'type') !== 'drive') return { bus: disk.bus, pci: address, unit: 0 };
  const unit = numberOf(address, 'unit');
  const controllers = childrenNamed(child(domain, 'devices'), 'controller').filter(
    (node) => attribute(node, 'type') === disk.bus,
  );
  // A guest may number its PCI buses otherwise: asked only where it has to be told apart.
  if (controllers.length < 2) return { bus: disk.bus, pci: undefined, unit };
  const own = numberOf(address, 'controller');
  const controller = controllers.find((node) => numberOf(node, 'index') === own);
  return { bus: disk.bus, pci: child(controller, 'address'), unit };
}

function numberOf(node: XmlElement | undefined, name: string): number {
  return Number(attribute(node, name) ?? 0);
}

/** By serial where the guest tells it; else by place, of which qemu-ga leaves out the target. */
function fits(disk: DomainDisk, place: Place, said: Address): boolean {
  // Guests with udev put the model before a SCSI disk's serial.
  if (disk.serial !== '' && said.serial?.endsWith(disk.serial) === true) return true;
  if (disk.serial !== '' && said.serial !== undefined && said.serial !== '') return false;
  if (said['bus-type'] !== place.bus || (said.unit ?? 0) !== place.unit) return false;
  const pci = said['pci-controller'];
  // Without an address in the domain (s390, old libvirt) bus and unit have to do.
  if (attribute(place.pci, 'type') !== 'pci' || pci === undefined) return place.bus === 'scsi';
  return (['domain', 'bus', 'slot', 'function'] as const).every(
    (part) => pci[part] === numberOf(place.pci, part),
  );
}

function jsonOrUndefined(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
