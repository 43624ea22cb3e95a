import type { Kysely } from 'kysely';
import type { Migration } from '../migrations.ts';
import type { Tables } from '../tables.ts';

/** What is known of machines and their backups, and the log of events. */
export const catalogTables: Migration = {
  name: 'catalog',
  async up(query) {
    await placesAndMachines(query);
    await recoveries(query);
    await backupsAndEvents(query);
  },
};

async function placesAndMachines({ schema }: Kysely<Tables>): Promise<void> {
  await schema
    .createTable('devices')
    .addColumn('id', 'text', (c) => c.primaryKey())
    .addColumn('name', 'text', (c) => c.notNull().unique())
    .addColumn('kind', 'text', (c) => c.notNull())
    .addColumn('address', 'text', (c) => c.notNull())
    .addColumn('vault_id', 'text', (c) => c.notNull())
    .addColumn('created_ms', 'bigint', (c) => c.notNull())
    .execute();
  await schema
    .createTable('hypervisors')
    .addColumn('id', 'text', (c) => c.primaryKey())
    .addColumn('name', 'text', (c) => c.notNull().unique())
    .addColumn('kind', 'text', (c) => c.notNull())
    .addColumn('uri', 'text', (c) => c.notNull())
    .addColumn('options', 'text', (c) => c.notNull())
    .addColumn('added_ms', 'bigint', (c) => c.notNull())
    .execute();
  await schema
    .createTable('machines')
    .addColumn('id', 'text', (c) => c.primaryKey())
    .addColumn('name', 'text', (c) => c.notNull())
    .addColumn('uuid', 'text')
    .addColumn('hypervisor_id', 'text')
    .addColumn('last_seen_ms', 'bigint', (c) => c.notNull())
    .execute();
  await schema
    .createTable('savesets')
    .addColumn('id', 'text', (c) => c.primaryKey())
    .addColumn('machine_id', 'text', (c) => c.notNull().references('machines.id'))
    .addColumn('machine_name', 'text', (c) => c.notNull())
    .addColumn('device_id', 'text')
    .addColumn('mtree', 'text', (c) => c.notNull())
    .addColumn('kind', 'text', (c) => c.notNull())
    .addColumn('taken_at_ms', 'bigint', (c) => c.notNull())
    .addColumn('record', 'text', (c) => c.notNull())
    .execute();
  const byMachine = ['machine_id', 'taken_at_ms'];
  await schema.createIndex('savesets_by_machine').on('savesets').columns(byMachine).execute();
  await schema.createIndex('savesets_by_time').on('savesets').columns(['taken_at_ms']).execute();
}

async function recoveries({ schema }: Kysely<Tables>): Promise<void> {
  await schema
    .createTable('recoveries')
    .addColumn('id', 'text', (c) => c.primaryKey())
    .addColumn('machine_id', 'text', (c) => c.notNull())
    .addColumn('saveset_id', 'text', (c) => c.notNull())
    .addColumn('mode', 'text', (c) => c.notNull())
    .addColumn('name', 'text', (c) => c.notNull())
    .addColumn('state', 'text', (c) => c.notNull())
    .addColumn('hypervisor_id', 'text')
    .addColumn('host', 'text')
    .addColumn('datastore_name', 'text')
    .addColumn('export_path', 'text')
    .addColumn('clone_id', 'text')
    .addColumn('clients', 'text', (c) => c.notNull())
    .addColumn('hypervisor_machine_id', 'text')
    .addColumn('created_ms', 'bigint', (c) => c.notNull())
    .addColumn('available_ms', 'bigint')
    .addColumn('ended_ms', 'bigint')
    .addColumn('lease_end_ms', 'bigint')
    .addColumn('time_to_available_ms', 'bigint')
    .addColumn('options', 'text', (c) => c.notNull())
    .addColumn('warnings', 'text', (c) => c.notNull())
    .addColumn('error', 'text')
    .execute();
  const byState = ['state', 'created_ms'];
  await schema.createIndex('recoveries_by_state').on('recoveries').columns(byState).execute();
}

async function backupsAndEvents({ schema }: Kysely<Tables>): Promise<void> {
  await schema
    .createTable('backups')
    .addColumn('id', 'text', (c) => c.primaryKey())
    .addColumn('machine_id', 'text', (c) => c.notNull())
    .addColumn('machine_name', 'text', (c) => c.notNull())
    .addColumn('kind', 'text')
    .addColumn('state', 'text', (c) => c.notNull())
    .addColumn('saveset_id', 'text')
    .addColumn('full_because', 'text')
    .addColumn('consistency', 'text')
    .addColumn('warnings', 'text', (c) => c.notNull())
    .addColumn('cost', 'text')
    .addColumn('started_ms', 'bigint', (c) => c.notNull())
    .addColumn('ended_ms', 'bigint')
    .addColumn('error', 'text')
    .execute();
  const byMachine = ['machine_id', 'started_ms'];
  await schema.createIndex('backups_by_machine').on('backups').columns(byMachine).execute();
  await schema
    .createTable('events')
    .addColumn('seq', 'bigint', (c) => c.primaryKey())
    .addColumn('time_ms', 'bigint', (c) => c.notNull())
    .addColumn('level', 'text', (c) => c.notNull())
    .addColumn('kind', 'text', (c) => c.notNull())
    .addColumn('subject_kind', 'text')
    .addColumn('subject_id', 'text')
    .addColumn('subject_name', 'text')
    .addColumn('message', 'text', (c) => c.notNull())
    .execute();
  await schema
    .createIndex('events_by_subject')
    .on('events')
    .columns(['subject_id', 'seq'])
    .execute();
}
