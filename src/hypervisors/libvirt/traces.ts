import { isRouseError } from '../../errors.ts';
import type { MachineSummary, Traces } from '../port.ts';
import { backupTraces } from './backup.ts';
import { domainXml, mountPathOf } from './context.ts';
import type { LibvirtContext } from './context.ts';
import { domainDisks, readMark } from './domain.ts';
import { listMachines } from './machines.ts';

/** Looks at every machine: marks and disks have no index in libvirt. */
export async function traces(context: LibvirtContext): Promise<Traces> {
  const found: Traces[] = [];
  for (const machine of await listMachines(context, '')) {
    try {
      found.push(await tracesOf(context, machine));
    } catch (error) {
      // Undefined by someone since the list was made.
      if (!isRouseError(error, 'not-found')) throw error;
    }
  }
  return {
    machines: found.flatMap((one) => one.machines),
    disks: found.flatMap((one) => one.disks),
    backups: found.flatMap((one) => one.backups),
  };
}

async function tracesOf(context: LibvirtContext, machine: MachineSummary): Promise<Traces> {
  const { id, name, power } = machine;
  const live = await domainXml(context, id);
  const stored = await domainXml(context, id, '--inactive');
  const mark = readMark(stored)?.mark;
  // What runs and what would start next may differ, as half way through a relocation.
  const disks = new Map(
    [...domainDisks(stored), ...domainDisks(live)].map((disk) => [
      `${disk.name} ${disk.source}`,
      { device: disk.name, location: exportedAt(context, disk.source) },
    ]),
  );
  const backups = await backupTraces(context, id, power);
  return {
    machines: mark === undefined ? [] : [{ id, name, power, mark }],
    disks: [...disks.values()].flatMap(({ device, location }) =>
      location === undefined ? [] : [{ machineId: id, machineName: name, power, device, location }],
    ),
    backups: backups.map((one) => ({ machineId: id, machineName: name, ...one })),
  };
}

/** `server:/path` of a disk that is read over NFS, by QEMU's client or below a mounted export. */
function exportedAt(context: LibvirtContext, source: string): string | undefined {
  const url = /^nfs:\/\/(\[[^\]]+\]|[^/]+)(\/.*)$/u.exec(source);
  if (url !== null) {
    const server = (url[1] ?? '').replace(/^\[(.*)\]$/u, '$1');
    return `${server}:${url[2]}`;
  }
  for (const { name, server, path } of context.state.current.datastores) {
    const place = mountPathOf(context, name);
    if (source.startsWith(`${place}/`)) return `${server}:${path}${source.slice(place.length)}`;
  }
  return undefined;
}
