import * as z from 'zod';
import { isRouseError } from '../../errors.ts';
import { libvirtLimits } from '../../limits.ts';
import type { GuestDisk } from '../port.ts';
import { domainXml } from './context.ts';
import type { LibvirtContext } from './context.ts';
import { domainDisks } from './domain.ts';
import type { DomainDisk } from './domain.ts';
import { attribute, child } from './xml.ts';

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
  const known = domainDisks(await domainXml(context, machine));
  return matchGuestDisks(known, disks, fileSystems ?? '');
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
    if (isRouseError(error) && error.code !== 'host-unreachable') return undefined;
    throw error;
  }
}

/** Pure: the machine's disks that the guest's answers name, by serial or by place on the bus. */
export function matchGuestDisks(
  disks: readonly DomainDisk[],
  disksSaid: string,
  fileSystemsSaid: string,
): readonly GuestDisk[] | undefined {
  const seen = disksAnswer.safeParse(jsonOrUndefined(disksSaid));
  if (!seen.success) return undefined;
  const mounted = fileSystemsAnswer.safeParse(jsonOrUndefined(fileSystemsSaid));
  const whole = seen.data.return.filter((one) => !one.partition);
  return disks.flatMap((disk) => {
    const found = whole.find((one) => isSame(disk, one.address));
    if (found === undefined) return [];
    const systems = mounted.success ? mounted.data.return : [];
    const mounts = systems.filter((one) => one.disk.some((part) => isSame(disk, part)));
    return [{ name: disk.name, seenAs: found.name, mounts: mounts.map((one) => one.mountpoint) }];
  });
}

function isSame(disk: DomainDisk, said: Address | undefined): boolean {
  if (said === undefined) return false;
  // Guests with udev put the model before a SCSI disk's serial.
  if (disk.serial !== '' && said.serial?.endsWith(disk.serial) === true) return true;
  if (disk.serial !== '' && said.serial !== undefined && said.serial !== '') return false;
  const place = child(disk.node, 'address');
  const number = (name: string) => Number(attribute(place, name) ?? Number.NaN);
  if (attribute(place, 'type') === 'drive') {
    return (
      said['bus-type'] === disk.bus &&
      said.bus === number('bus') &&
      said.target === number('target') &&
      said.unit === number('unit')
    );
  }
  const pci = said['pci-controller'];
  return (
    said['bus-type'] === 'virtio' &&
    disk.bus === 'virtio' &&
    pci?.domain === number('domain') &&
    pci.bus === number('bus') &&
    pci.slot === number('slot') &&
    pci.function === number('function')
  );
}

function jsonOrUndefined(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
