import type { MemoryMachine } from './memory.ts';
import type { Traces } from './port.ts';

/** What a manager in memory shows of machines with a mark, disks on exports, and backup jobs. */
export function tracesOf(
  machines: readonly MemoryMachine[],
  backups: ReadonlyMap<string, string>,
): Traces {
  return {
    machines: machines.flatMap(({ id, name, power, mark }) =>
      mark === undefined ? [] : [{ id, name, power, mark }],
    ),
    disks: machines.flatMap(({ id, name, power, disks }) =>
      disks
        .filter(({ datastore }) => datastore !== undefined)
        .map((disk) => ({
          machineId: id,
          machineName: name,
          power,
          device: disk.name,
          location: disk.source,
        })),
    ),
    backups: [...backups].map(([machineId, token]) => ({
      machineId,
      machineName: machines.find(({ id }) => id === machineId)?.name ?? machineId,
      token,
      kind: 'job' as const,
    })),
  };
}
