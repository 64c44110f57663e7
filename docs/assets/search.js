// A flag can be pasted as it is: a leading "-" would exclude its words.
document.addEventListener(
  "input",
  ({ target }) => {
    if (target.matches("[data-md-component=search-query]"))
      target.value = target.value.replace(/^[\s-]+/, "");
  },
  true,
);
