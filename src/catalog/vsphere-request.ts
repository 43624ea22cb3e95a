import { RouseError } from '../errors.ts';
import {
  checkAuthority,
  normalFingerprint,
  readCertificate,
  type SeenCertificate,
} from '../hypervisors/vsphere/trust.ts';
import { shellWord } from '../lib/text.ts';
import type { HypervisorRequest } from './schema.ts';

/** What is kept of a vCenter or an ESXi host besides its address; its password is not part of it. */
export interface VsphereOptions {
  readonly user: string;
  readonly fingerprint?: string;
  /** PEM. */
  readonly authority?: string;
}

/**
 * Checks a request before anything is sent. Without a reason to trust the other side, its
 * certificate is read, shown and refused: nobody's password goes to whom it does not know.
 */
export async function vsphereOptions(request: HypervisorRequest): Promise<VsphereOptions> {
  const place = placeOf(request.uri);
  const { fingerprint, authority, user } = request;
  if (fingerprint !== undefined && authority !== undefined) {
    throw new RouseError('bad-request', 'a fingerprint and an authority are named: one is enough', {
      advice: 'A fingerprint is exact; an authority lasts longer than one certificate.',
    });
  }
  if (fingerprint === undefined && authority === undefined) {
    throw unknownCertificate(request, await readCertificate(place));
  }
  if (authority !== undefined) checkAuthority(authority);
  if (user === undefined || request.password === undefined) {
    const missing = user === undefined ? 'user' : 'password';
    throw new RouseError('bad-request', `a ${missing} is missing for ${request.uri}`, {
      advice: 'Name both: --user NAME --password-file FILE',
    });
  }
  return {
    user,
    ...(fingerprint === undefined ? {} : { fingerprint: normalFingerprint(fingerprint) }),
    ...(authority === undefined ? {} : { authority }),
  };
}

function placeOf(uri: string): { host: string; port: number } {
  const url = URL.canParse(uri) ? new URL(uri) : undefined;
  if (url?.protocol !== 'https:' || url.hostname === '') {
    throw new RouseError('bad-request', 'this is not the address of a vCenter or an ESXi host', {
      advice: 'Write it as https://vcenter.example/sdk.',
    });
  }
  if (url.username !== '' || url.password !== '') {
    throw new RouseError('bad-request', 'the address holds a user or a password', {
      advice: 'Name them apart: --user NAME --password-file FILE',
    });
  }
  const host = url.hostname.replace(/^\[|\]$/gu, '');
  return { host, port: url.port === '' ? 443 : Number(url.port) };
}

function unknownCertificate(request: HypervisorRequest, seen: SeenCertificate): RouseError {
  const { fingerprint, subject, issuer, validFrom, validTo } = seen;
  const again = `rouse hypervisor add ${shellWord(request.name)} ${shellWord(request.uri)}`;
  return new RouseError(
    'bad-request',
    `nothing says yet that ${request.uri} is the one that is meant. Its certificate (${subject}, ` +
      `issued by ${issuer}, valid from ${validFrom} to ${validTo}) has the SHA-256 fingerprint ` +
      fingerprint,
    {
      advice:
        'Nothing was sent to it. Compare the fingerprint with the one that the machine shows ' +
        'itself (on its console: openssl x509 -noout -fingerprint -sha256 -in ' +
        '/etc/vmware-vpx/ssl/rui.crt, on ESXi /etc/vmware/ssl/rui.crt); if they are the same: ' +
        `${again} --user NAME --password-file FILE --fingerprint ${fingerprint}`,
      details: { certificate: { ...seen } },
    },
  );
}
