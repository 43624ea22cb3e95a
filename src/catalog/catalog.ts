import type { Database } from '../database/database.ts';
import type { Clock } from '../lib/clock.ts';
import { Backups } from './backups.ts';
import { Devices } from './devices.ts';
import { Events } from './events.ts';
import { Hypervisors } from './hypervisors.ts';
import { Machines } from './machines.ts';
import { Proxies } from './proxies.ts';
import { Recoveries } from './recoveries.ts';
import { Savesets } from './savesets.ts';

/**
 * What the server knows: each store is one table, typed, without rules of its own. Reads and writes
 * of several stores commit together inside `database.transaction`.
 */
export interface Catalog {
  readonly devices: Devices;
  readonly hypervisors: Hypervisors;
  readonly machines: Machines;
  readonly savesets: Savesets;
  readonly recoveries: Recoveries;
  readonly backups: Backups;
  readonly events: Events;
  readonly proxies: Proxies;
}

export function openCatalog(database: Database, clock: Clock): Catalog {
  return {
    devices: new Devices(database),
    hypervisors: new Hypervisors(database),
    machines: new Machines(database),
    savesets: new Savesets(database),
    recoveries: new Recoveries(database),
    backups: new Backups(database),
    events: new Events(database, clock),
    proxies: new Proxies(database),
  };
}
