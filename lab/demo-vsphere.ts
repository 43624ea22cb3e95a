import { mkdir, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { tell } from './demo-report.ts';
import type { Stage } from './demo-stage.ts';
import { buildGuest, Heartbeats, type SerialConsole } from './guest.ts';
import { run } from './processes.ts';
import type { RouseCommand } from './rouse-command.ts';
import { buildGo } from './vcenter/build.ts';
import { type StandIn, startStandIn, writeMachine } from './vcenter/vcenter.ts';
import { type World, worldAddresses } from './world.ts';

/**
 * A guest on the production datastore of a vCenter with two ESXi hosts: the stand-in, whose hosts
 * mount, boot and copy (lab/vcenter/README.md tells what is modelled and where it guesses).
 */
export async function vsphereStage(world: World): Promise<Stage> {
  const { directory } = world;
  const production = join(directory, 'production');
  await mkdir(production, { recursive: true });
  const guest = await tell('A guest of Debian packages', () =>
    buildGuest({ directory, name: 'web01' }),
  );
  const vmx = await writeMachine({ directory: production, name: 'web01', disks: [guest.disk] });
  const vcenter = await tell('A vCenter with two ESXi hosts', () =>
    startVcenter(world, production, vmx),
  );
  const ask = await otherClient(vcenter);
  let console: SerialConsole | undefined;
  return {
    knownSha256: guest.knownSha256,
    upOptions: ['--address', worldAddresses.ipv4],
    prepare: async (rouse) => {
      await introduce(rouse, vcenter, directory);
      const serial = await tell('web01 boots', async () => {
        await ask('on', 'web01');
        const opened = await vcenter.serial('web01');
        await new Heartbeats(opened).next(90_000);
        return opened;
      });
      await tell('rouse backup web01, while it runs', () => rouse.json('backup', 'web01'));
      await serial.command('write 4');
      await tell('rouse backup web01, what changed', () => rouse.json('backup', 'web01'));
      await serial.close();
    },
    lose: () =>
      tell('web01 and its disk are destroyed', async () => {
        await ask('off', 'web01');
        await ask('unregister', 'web01');
        await rm(join(production, 'web01'), { recursive: true });
      }),
    serial: async () => (console ??= await vcenter.serial('web01')),
    registrations: async () => {
      const machines = await vcenter.machines();
      return machines.filter(({ vmx: path }) => !path.startsWith('[production] ')).length;
    },
    end: async () => {
      await ask('off', 'web01');
      await console?.close();
      await vcenter.stop();
    },
  };
}

async function startVcenter(world: World, production: string, vmx: string): Promise<StandIn> {
  const esx = [await world.addHost('esx1'), await world.addHost('esx2')];
  const hosts = esx.map(({ name, ipv4, ipv6 }) => {
    return { name, netns: name, addresses: [ipv4, ipv6] };
  });
  return startStandIn({
    directory: join(world.directory, 'vc'),
    inventory: {
      datacenters: [
        {
          name: 'dc1',
          clusters: [{ name: 'cluster1', hosts }],
          datastores: [{ name: 'production', directory: production }],
          machines: [{ vmx: `[production] ${vmx}`, host: 'esx1' }],
        },
      ],
    },
  });
}

/** What an administrator does there without Rouse, through govmomi's own library. */
async function otherClient(vcenter: StandIn): Promise<(...args: string[]) => Promise<string>> {
  const program = await buildGo(join(import.meta.dirname, 'vcenter', 'client'));
  const login = ['-url', vcenter.url, '-user', vcenter.user, '-password', vcenter.password];
  const there = ['-certificate', vcenter.certificate, '-datacenter', 'dc1'];
  return (...args) => run(program, [...login, ...there, ...args]);
}

async function introduce(rouse: RouseCommand, vcenter: StandIn, directory: string): Promise<void> {
  const password = join(directory, 'password');
  await writeFile(password, vcenter.password, { mode: 0o600 });
  const who = ['--user', vcenter.user, '--password-file', password];
  const trust = ['--fingerprint', vcenter.fingerprint];
  await tell('rouse hypervisor add, by its fingerprint', () =>
    rouse.json('hypervisor', 'add', 'lab', vcenter.url, ...who, ...trust),
  );
}
