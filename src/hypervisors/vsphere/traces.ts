import type { Traces } from '../port.ts';
import type { VimClient } from './client.ts';
import { nameOfFound } from './datastores.ts';
import { disksOf } from './devices.ts';
import { datastorePaths, powerOf, remoteOf } from './inventory.ts';
import { devicesOf, markedMachines } from './machines.ts';
import { entityName, parseDatastorePath } from './names.ts';
import { readAll } from './properties.ts';
import type { Found } from './properties.ts';
import { snapshotsIn } from './snapshots.ts';

/** What looks like ours: marks, and disks (and homes) of machines that lie on NFS. */
export async function traces(client: VimClient): Promise<Traces> {
  const places = new Map<string, string>();
  const machines: Found[] = [];
  const wanted = {
    Datastore: datastorePaths,
    VirtualMachine: [
      'name',
      'config.hardware',
      'runtime.powerState',
      'config.files.vmPathName',
      'snapshot',
    ],
  };
  await readAll(client, wanted, (one) => {
    const remote = one.ref.type === 'Datastore' ? remoteOf(one) : undefined;
    if (remote !== undefined) places.set(nameOfFound(one), remote);
    if (one.ref.type === 'VirtualMachine') machines.push(one);
  });
  const disks = machines.flatMap((one) => {
    const home = { device: 'vmx', file: one.text('config.files.vmPathName') ?? '' };
    const all = disksOf(devicesOf(one)).map(({ name, file }) => ({ device: name, file }));
    const located = all.flatMap((disk) => exported(places, disk));
    // A machine without disks still lies where its .vmx does.
    return (located.length > 0 ? located : exported(places, home)).map((disk) => ({
      machineId: one.ref.id,
      machineName: entityName(one.text('name')),
      power: powerOf(one.text('runtime.powerState')),
      ...disk,
    }));
  });
  return { machines: await markedMachines(client), disks, backups: machines.flatMap(backupsOf) };
}

/** Snapshots of backups, by the name and the description that prove them to be ours. */
function backupsOf(machine: Found): Traces['backups'] {
  return snapshotsIn(machine.get('snapshot')).flatMap(({ token }) =>
    token === undefined
      ? []
      : [
          {
            machineId: machine.ref.id,
            machineName: entityName(machine.text('name')),
            token,
            kind: 'snapshot' as const,
          },
        ],
  );
}

function exported(
  places: ReadonlyMap<string, string>,
  { device, file }: { readonly device: string; readonly file: string },
): { device: string; location: string }[] {
  const at = parseDatastorePath(file);
  const remote = at === undefined ? undefined : places.get(at.datastore);
  return remote === undefined ? [] : [{ device, location: `${remote}/${at?.path ?? ''}` }];
}
