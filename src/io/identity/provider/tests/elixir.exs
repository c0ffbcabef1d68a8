# Makes the tokens of elixir.txt: those of Phoenix.Token by Plug.Crypto 2.1.1 (`Phoenix.Token.sign(secret, salt, data, opts)` is
# `Plug.Crypto.sign(secret, salt, data, opts)`), one of AshAuthentication's shape by erlang-jose 1.11.5, which is what Joken signs
# with. On Debian 12, with the packages elixir, erlang-jose and erlang-jiffy, and Plug.Crypto compiled into EBIN:
#
#   elixir -pa EBIN elixir.exs > elixir.txt
#
# Each line has a name, what the test expects, and the token. All are signed in the second 1,000,000.
alias Plug.Crypto
{:ok, _} = Crypto.Application.start(:normal, [])

secret = String.duplicate("0123456789abcdef", 4)
salt = "user socket"
at = [signed_at: 1_000_000]
uuid = "0192f3a4-5b6c-7d8e-9fa0-b1c2d3e4f506"
nested = Enum.reduce(1..40, 7, fn _, inner -> [inner] end)

samples = [
  {"integer", "sub=7", fn -> Crypto.sign(secret, salt, 7, at) end},
  {"negative", "sub=-70000", fn -> Crypto.sign(secret, salt, -70_000, at) end},
  {"snowflake", "sub=1541815603606036480", fn -> Crypto.sign(secret, salt, 1_541_815_603_606_036_480, at) end},
  {"binary", "sub=" <> uuid, fn -> Crypto.sign(secret, salt, uuid, at) end},
  {"unicode", "sub=žofie", fn -> Crypto.sign(secret, salt, "žofie", at) end},
  {"atom", "sub=guest", fn -> Crypto.sign(secret, salt, :guest, at) end},
  {"atom-keys", "id=7", fn -> Crypto.sign(secret, salt, %{id: 7, org: "acme", role: :staff, admin: false, team: nil}, at) end},
  {"text-keys", "id=7", fn -> Crypto.sign(secret, salt, %{"id" => 7, "org" => "acme"}, at) end},
  {"keyword", "0.1=7", fn -> Crypto.sign(secret, salt, [id: 7, org: "acme"], at) end},
  {"tuple", "1=7", fn -> Crypto.sign(secret, salt, {:user, 7}, at) end},
  {"list", "0=7", fn -> Crypto.sign(secret, salt, [7, "acme"], at) end},
  {"nested", "user.id=" <> uuid, fn -> Crypto.sign(secret, salt, %{user: %{id: uuid, at: ~U[2026-11-30 11:00:00Z], tags: ~w(a b)a}}, at) end},
  {"float", "unmapped", fn -> Crypto.sign(secret, salt, 1.5, at) end},
  {"large", "id=7", fn -> Crypto.sign(secret, salt, %{id: 7, more: Enum.map(1..60, &"part #{&1}")}, at) end},
  {"longer", "sub=7 max_age=1209600", fn -> Crypto.sign(secret, salt, 7, at ++ [max_age: 1_209_600]) end},
  {"half", "sub=7 max_age=89", fn -> Crypto.sign(secret, salt, 7, signed_at: 1_000_000.5, max_age: 89.5) end},
  {"forever", "sub=7 key=max_age:3600 max_age=3600", fn -> Crypto.sign(secret, salt, 7, at ++ [max_age: :infinity]) end},
  {"rounds", "sub=7 key=key_iterations:2000", fn -> Crypto.sign(secret, salt, 7, at ++ [key_iterations: 2000]) end},
  {"length", "sub=7 key=key_length:64", fn -> Crypto.sign(secret, salt, 7, at ++ [key_length: 64]) end},
  {"sha384", "sub=7 key=key_digest:\"sha384\"", fn -> Crypto.sign(secret, salt, 7, at ++ [key_digest: :sha384]) end},
  {"sha512", "sub=7 key=key_digest:\"sha512\"", fn -> Crypto.sign(secret, salt, 7, at ++ [key_digest: :sha512]) end},
  # As Plug.Crypto before 1.2 and Phoenix before 1.5 had it.
  {"pair", "sub=7", fn -> Crypto.MessageVerifier.sign(:erlang.term_to_binary({7, 1_000_000_000}), Crypto.KeyGenerator.generate(secret, salt)) end},
  {"map", "sub=7", fn -> Crypto.MessageVerifier.sign(:erlang.term_to_binary(%{data: 7, signed: 1_000_000_000}), Crypto.KeyGenerator.generate(secret, salt)) end},
  # What is refused.
  {"later", "not_yet_valid", fn -> Crypto.sign(secret, salt, 7, signed_at: 1_000_100) end},
  {"over", "expired", fn -> Crypto.sign(secret, salt, 7, at ++ [max_age: 0]) end},
  {"endless", "malformed", fn -> Crypto.sign(secret, salt, 7, at ++ [max_age: :infinity]) end},
  {"deep", "malformed", fn -> Crypto.sign(secret, salt, nested, at) end},
  {"pid", "malformed", fn -> Crypto.sign(secret, salt, {self(), 7}, at) end},
  {"reference", "malformed", fn -> Crypto.sign(secret, salt, make_ref(), at) end},
  {"fun", "malformed", fn -> Crypto.sign(secret, salt, &String.length/1, at) end},
  {"huge", "malformed", fn -> Crypto.sign(secret, salt, 2 ** 70, at) end},
  {"bytes", "malformed", fn -> Crypto.sign(secret, salt, <<255, 254, 0, 1>>, at) end},
  {"compressed", "malformed", fn -> Crypto.MessageVerifier.sign(:erlang.term_to_binary({String.duplicate("x", 2000), 1_000_000_000, 86_400}, [:compressed]), Crypto.KeyGenerator.generate(secret, salt)) end},
  {"another-salt", "signature", fn -> Crypto.sign(secret, "session", 7, at) end},
  {"hs512", "algorithm", fn -> Crypto.MessageVerifier.sign(:erlang.term_to_binary({7, 1_000_000_000, 86_400}), Crypto.KeyGenerator.generate(secret, salt), :sha512) end},
  {"encrypted", "nobody", fn -> Crypto.encrypt(secret, salt, 7, at) end}
]

claims = %{
  "aud" => "~> 4.13", "exp" => 1_000_100, "iat" => 1_000_000, "iss" => "AshAuthentication v4.13.7", "jti" => "31ndv0gd3a4ve7r98o0000k1",
  "nbf" => 1_000_000, "purpose" => "user", "sub" => "user?id=" <> uuid
}

ash = fn alg, claims ->
  {_, token} = :jose_jws.compact(:jose_jwt.sign(:jose_jwk.from_oct(secret), %{"alg" => alg, "typ" => "JWT"}, claims))
  token
end

ashes = [
  {"ash", "ash sub=user?id=" <> uuid, fn -> ash.("HS256", claims) end},
  {"ash-512", "ash sub=user?id=" <> uuid <> " key=algorithm:\"HS512\"", fn -> ash.("HS512", claims) end},
  {"ash-tenant", "ash sub=user?id=" <> uuid <> " key=tenants:\"*\"", fn -> ash.("HS256", Map.put(claims, "tenant", "acme")) end},
  {"ash-reset", "ash not_for_us", fn -> ash.("HS256", Map.put(claims, "act", "reset_password_with_password")) end}
]

for {name, expected, token} <- samples ++ ashes, do: IO.puts(Enum.join([name, expected, token.()], " | "))
