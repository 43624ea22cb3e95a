import * as path from 'node:path';
import type { HypervisorSpec } from './catalog/hypervisor-service.ts';
import type { VsphereOptions } from './catalog/vsphere-request.ts';
import { RouseError } from './errors.ts';
import { openLibvirt } from './hypervisors/libvirt/driver.ts';
import type { Hypervisor } from './hypervisors/port.ts';
import { VsphereHypervisor } from './hypervisors/vsphere/driver.ts';
import type { Trust } from './hypervisors/vsphere/trust.ts';
import type { Clock } from './lib/clock.ts';
import type { SecretFiles } from './lib/secret-files.ts';

/** A driver for what was added, by its kind; nothing is sent anywhere yet. */
export async function connectHypervisor(
  id: string,
  { kind, uri, options }: HypervisorSpec,
  around: { readonly clock: Clock; readonly data: string; readonly secrets: SecretFiles },
): Promise<Hypervisor> {
  const { clock, data, secrets } = around;
  if (kind !== 'vsphere') {
    const stateDirectory = path.join(data, 'hypervisors', id);
    return openLibvirt({ uri, clock, datastores: options.datastores, stateDirectory });
  }
  if (options.vsphere === undefined) {
    throw new RouseError('internal', `hypervisor ${id} has lost its options`);
  }
  const { user } = options.vsphere;
  const trust = trustOf(options.vsphere, uri);
  return new VsphereHypervisor({ url: uri, user, trust, clock, password: () => secrets.get(id) });
}

function trustOf({ fingerprint, authority }: VsphereOptions, uri: string): Trust {
  if (fingerprint !== undefined) return { fingerprint };
  if (authority !== undefined) return { authority };
  throw new RouseError('internal', `nothing is known that makes ${uri} trusted`);
}
